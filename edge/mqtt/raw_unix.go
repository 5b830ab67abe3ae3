//go:build unix && (!linux || race)

package mqtt

import "syscall"

// The race detector learns from package syscall what a socket orders.

func rawRead(fd uintptr, b []byte) (int, error)  { return syscall.Read(int(fd), b) }
func rawWrite(fd uintptr, b []byte) (int, error) { return syscall.Write(int(fd), b) }
