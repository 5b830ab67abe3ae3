package durable

import (
	"os"

	"golang.org/x/sys/unix"
)

// EIO is a bad sector, ENODATA and EILSEQ the block layer's words for it, EUCLEAN and EBADMSG
// those of a file system that checks what it reads.
var unreadable = []error{unix.EIO, unix.ENODATA, unix.EILSEQ, unix.EUCLEAN, unix.EBADMSG, unix.EREMOTEIO}

// datasync is fdatasync(2): it flushes the data and what is needed to read it
// back, the length included.
func datasync(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = c.Control(func(fd uintptr) {
		for {
			if serr = unix.Fdatasync(int(fd)); serr != unix.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}

// Preallocate gives a file its blocks up to size; its length stays.
func (OS) Preallocate(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size); err != unix.EINTR {
			return err
		}
	}
}

// Allocate makes a file of size bytes whose blocks are the file's from now on.
// Nothing is written to them.
func (OS) Allocate(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	for {
		if err = unix.Fallocate(int(f.Fd()), 0, 0, size); err != unix.EINTR {
			break
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(name)
		return &os.PathError{Op: "fallocate", Path: name, Err: err}
	}
	return nil
}
