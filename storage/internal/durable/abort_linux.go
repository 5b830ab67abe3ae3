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
// missing after the next mount). What starts a transaction fails, though. An abort is for
// good: if a sync was a false one, whoever asks after it hears so.
//
// To remove an access list that is not there starts a transaction, finds nothing to remove,
// and writes nothing. To replace an attribute that is not there does the same, but the next
// commit is then no fast commit (ext4's fast_commit), whatever it has: twice the device bytes.
// So that is for file systems without access lists and files that have one.

const (
	ext4Magic  = 0xef53
	accessList = "system.posix_acl_access"
	abortAttr  = "user.tailrace" // no file has it
)

// Variables for tests.
var (
	getxattr    = unix.Fgetxattr
	removexattr = unix.Fremovexattr
	setxattr    = unix.Fsetxattr
)

// journal knows whether a file's journal can be asked.
type journal struct{ state atomic.Int32 }

const (
	journalUnknown = iota
	journalAsk
	journalAskAttr // access lists do not answer
	journalNone    // another file system, or one without attributes
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
		state := j.state.Load()
		switch err := startNothing(fd, state); err {
		case unix.EINTR:
			continue
		case unix.EROFS, unix.EIO, unix.ENOMEM:
			return err
		case nil, unix.ENODATA:
		default: // none of these here, or not for us
			if state == journalAsk {
				j.state.CompareAndSwap(state, journalAskAttr)
				continue
			}
			j.state.Store(journalNone)
		}
		return nil
	}
}

// startNothing starts a transaction that writes nothing.
func startNothing(fd int, state int32) error {
	if state == journalAsk {
		_, err := getxattr(fd, accessList, nil)
		if err == unix.ENODATA {
			return removexattr(fd, accessList)
		}
		if err != nil {
			return err
		}
	}
	return setxattr(fd, abortAttr, abortValue, unix.XATTR_REPLACE)
}
