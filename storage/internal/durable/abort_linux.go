package durable

import (
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// While ext4 turns read-only after an error (errors=remount-ro, Debian's default for the
// root) its journal is aborted for a moment, a millisecond to some tens of them, before
// anything else shows it. An fdatasync in this moment finds its transaction gone and
// returns success, although the file's new length never reached the disk (seen on 6.18:
// acknowledged records missing after the next mount). What starts a transaction fails,
// though, and an attribute that is set to what it is starts one and writes nothing. If
// the fdatasync was a false one the abort was before it, so this sees it.

const (
	ext4Magic = 0xef53
	abortAttr = "user.tailrace"
)

// journal asks after each fdatasync whether it can be believed.
type journal struct {
	off atomic.Bool // another file system, or one without attributes
	on  atomic.Bool
}

func (j *journal) alive(f *os.File) error {
	if j.off.Load() {
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
		return &os.PathError{Op: "fdatasync succeeded and the journal of the file system is gone, it has met an error:", Path: f.Name(), Err: err}
	}
	return nil
}

func (j *journal) ask(fd int) error {
	if !j.on.Load() {
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil || st.Type != ext4Magic {
			j.off.Store(true)
			return nil
		}
		j.on.Store(true)
	}
	for {
		err := unix.Fsetxattr(fd, abortAttr, []byte{'1'}, 0)
		switch {
		case err == unix.EINTR:
			continue
		case errors.Is(err, unix.EROFS) || errors.Is(err, unix.EIO):
			return err
		case err != nil: // no attributes here, or no room for one
			j.off.Store(true)
		}
		return nil
	}
}
