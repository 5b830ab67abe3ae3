package storagetest

import (
	"errors"
	"fmt"
)

// Call names a kind of call that CrashFS counts and can make fail.
type Call int

const (
	Open     Call = iota // open of an existing file
	Create               // open with os.O_CREATE
	Read                 // Read and ReadAt
	Write                // Write
	Sync                 // fsync of a file
	SyncDir              // fsync of a directory
	Truncate             // change of a file's length
	Rename
	Remove
	ReadDir
	Stat
	Mkdir
	Lock
	Free
	callKinds

	// Any stands for every kind in a Fault. Change stands for those that change the disk.
	Any
	Change
)

var callNames = [...]string{"open", "create", "read", "write", "sync", "sync dir", "truncate", "rename", "remove", "read dir", "stat", "mkdir", "lock", "free", "", "any", "change"}

func (c Call) String() string {
	if c < 0 || int(c) >= len(callNames) {
		return fmt.Sprintf("call %d", int(c))
	}
	return callNames[c]
}

func (c Call) changes() bool {
	switch c {
	case Create, Write, Sync, SyncDir, Truncate, Rename, Remove, Mkdir:
		return true
	}
	return false
}

func (c Call) covers(kind Call) bool {
	return c == Any || c == kind || c == Change && kind.changes()
}

// Fault makes calls fail.
type Fault struct {
	Call Call
	// N is the number of the call that fails, from 1, counted among the calls of its kind
	// since the fault was set. 0 means 1.
	N int
	// Err is what the call returns: syscall.EIO, ENOSPC, EROFS.
	Err error
	// Forever makes every later call of the kind fail as well.
	Forever bool
	// After lets the call take effect and then reports the failure: the other half of a
	// fault pair. Without it the call has no effect.
	After bool
	// Short is how many bytes a failing Write still writes.
	Short int
	// Match, when set, restricts the fault to some paths; others are not counted.
	Match func(path string) bool
}

type armed struct {
	Fault
	seen, fired int
}

// hit counts a call and tells whether it is to fail.
func (a *armed) hit(kind Call, path string) bool {
	if !a.Call.covers(kind) || a.Match != nil && !a.Match(path) {
		return false
	}
	a.seen++
	n := max(a.N, 1)
	if a.seen == n || a.Forever && a.seen > n {
		a.fired++
		return true
	}
	return false
}

// ErrPowerCut is returned by every call after a power cut.
var ErrPowerCut = errors.New("storagetest: power is off")

// pageBytes is what a disk, through the kernel's cache, gives or refuses at once.
const pageBytes = 4096

// badSpan is a range that a disk refuses to read, so many times more; for ever when negative.
type badSpan struct {
	span
	times int
}

// Unreadable makes reads of the pages of a file that hold [from, to) fail with EIO, times
// times, or for ever when times is negative: a bad sector. It stays with the file wherever
// that is renamed to; what is written there anew can be read, as on a disk that has spare
// sectors. The library's own reads are not seen here.
func (c *CrashFS) Unreadable(name string, from, to int64, times int) error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	n, err := c.d.opened(name)
	if err != nil {
		return err
	}
	n.bad = append(n.bad, badSpan{span{from / pageBytes * pageBytes, (to + pageBytes - 1) / pageBytes * pageBytes}, times})
	return nil
}

// readable is how many of the bytes of a read come before a page that the disk refuses.
func (n *node) readable(off int64, length int) int {
	end := off + int64(length)
	for i := range n.bad {
		b := &n.bad[i]
		if b.times == 0 || off >= b.to || end <= b.from {
			continue
		}
		if b.from <= off {
			b.times = max(b.times-1, -1)
		}
		end = max(b.from, off)
	}
	return int(end - off)
}

// written heals whole pages.
func (n *node) written(off, length int64) {
	for i := range n.bad {
		if b := &n.bad[i]; off <= b.from && b.to <= off+length {
			b.times = 0
		}
	}
}
