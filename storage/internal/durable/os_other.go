//go:build !linux

package durable

import "os"

func datasync(f *os.File) error { return f.Sync() }

type journal struct{}

func (*journal) alive(*os.File) error { return nil }
