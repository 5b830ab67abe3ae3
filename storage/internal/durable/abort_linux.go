package durable

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// While ext4 turns read-only after an error (errors=remount-ro, Debian's default for the
// root) its journal is aborted for a moment, a millisecond to some tens of them, before
// anything else shows it; errors of the journal itself do the same to every ext4. An fsync
// of a file or directory in this moment finds its transaction gone and returns success,
// although a length or a name never reached the disk (seen on 6.18: acknowledged records
// missing after the next mount). What starts a transaction fails, though, and to replace an
// attribute that is not there starts one, finds nothing to replace, and writes nothing. An
// abort is for good: if a sync was a false one, whoever asks after it hears so.

const (
	ext4Magic = 0xef53
	abortAttr = "user.tailrace" // no file has it
)

// setxattr is a variable for tests.
var setxattr = unix.Fsetxattr

// journal knows whether a file's journal can be asked.
type journal struct{ state atomic.Int32 }

const (
	journalUnknown = iota
	journalAsk
	journalNone // another file system, or one without attributes
)

func (j *journal) alive(f *os.File) error {
	if j.state.Load() == journalNone {
		return nil
	}
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(fd uintptr) { err = j.ask(int(fd)) })
	if err == nil {
		err = cerr
	}
	if err != nil {
		return &os.PathError{Op: "fsync succeeded and the journal of the file system is gone, it has met an error:", Path: f.Name(), Err: err}
	}
	return nil
}

var abortValue = []byte{'1'} // never changed

func (j *journal) ask(fd int) error {
	if j.state.Load() == journalUnknown {
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil || st.Type != ext4Magic {
			j.state.Store(journalNone)
			return nil
		}
		j.state.Store(journalAsk)
	}
	for {
		switch err := setxattr(fd, abortAttr, abortValue, unix.XATTR_REPLACE); err {
		case unix.EINTR:
			continue
		case unix.EROFS, unix.EIO, unix.ENOMEM:
			return err
		case nil, unix.ENODATA:
		default: // no attributes here, or none for us
			j.state.Store(journalNone)
		}
		return nil
	}
}
