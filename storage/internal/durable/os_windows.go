package durable

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/windows"
)

var unreadable = []error{windows.ERROR_CRC, windows.ERROR_READ_FAULT, windows.ERROR_SECTOR_NOT_FOUND, windows.ERROR_IO_DEVICE}

// SyncDir does nothing: NTFS journals names itself, and a directory cannot be
// flushed through an ordinary handle.
func (OS) SyncDir(string) error { return nil }

// Lock is LockFileEx, which ends with the process.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	if err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, new(windows.Overlapped)); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w: another process has this directory open", name, err)
	}
	return f, nil
}

// Free asks GetDiskFreeSpaceEx.
func (OS) Free(dir string) (int64, error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return -1, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(p, &free, nil, nil); err != nil {
		return -1, err
	}
	return int64(free), nil
}
