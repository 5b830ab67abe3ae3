package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestJournalIsAsked with calls that write nothing, every time; what says that there is
// none to ask ends the asking and is no failure. An access list that is there stays.
func TestJournalIsAsked(t *testing.T) {
	defer func(g func(int, string, []byte) (int, error), r func(int, string) error, s func(int, string, []byte, int) error) {
		getxattr, removexattr, setxattr = g, r, s
	}(getxattr, removexattr, setxattr)
	const none, unable = "none", "unable"
	for _, tc := range []struct {
		list          string // "": the file has an access list
		says          error
		dead          bool
		removed, sets int // questions in two times
	}{
		{none, unix.ENODATA, false, 2, 0},
		{none, nil, false, 2, 0},
		{none, unix.EROFS, true, 2, 0},
		{none, unix.EIO, true, 2, 0},
		{none, unix.ENOMEM, true, 2, 0},
		{none, unix.EPERM, false, 1, 1},
		{"", unix.ENODATA, false, 0, 2},
		{"", unix.EROFS, true, 0, 2},
		{unable, unix.ENODATA, false, 0, 2},
		{unable, nil, false, 0, 2},
		{unable, unix.EROFS, true, 0, 2},
		{unable, unix.EIO, true, 0, 2},
		{unable, unix.ENOMEM, true, 0, 2},
		{unable, unix.EOPNOTSUPP, false, 0, 1},
		{unable, unix.EPERM, false, 0, 1},
	} {
		file, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		f := osFile{file, new(journal)}
		f.journal.state.Store(journalAsk) // as on ext4
		removed, sets, interrupted := 0, 0, false
		answer := func(fd int, n *int) error {
			if fd != int(file.Fd()) {
				t.Errorf("asked for %d", fd)
			}
			if interrupted = !interrupted; interrupted {
				return unix.EINTR
			}
			*n++
			return tc.says
		}
		getxattr = func(_ int, name string, _ []byte) (int, error) {
			switch tc.list {
			case none:
				return 0, unix.ENODATA
			case unable:
				return 0, unix.EOPNOTSUPP
			}
			return 44, nil
		}
		removexattr = func(fd int, name string) error { return answer(fd, &removed) }
		setxattr = func(fd int, _ string, _ []byte, flags int) error {
			if flags != unix.XATTR_REPLACE {
				t.Errorf("asked with %d", flags)
			}
			return answer(fd, &sets)
		}
		for range 2 {
			if err := f.JournalAlive(); (err != nil) != tc.dead || tc.dead && !errors.Is(err, tc.says) {
				t.Errorf("list %q, %v: %v", tc.list, tc.says, err)
			}
		}
		if removed != tc.removed || sets != tc.sets {
			t.Errorf("list %q, %v: asked %d and %d times, want %d and %d", tc.list, tc.says, removed, sets, tc.removed, tc.sets)
		}
	}
}

// TestJournalIsAskedOnExt4Only, and the kernel knows the call.
func TestJournalIsAskedOnExt4Only(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	f, err := OS{}.OpenFile(filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		if err := f.(Journaled).JournalAlive(); err != nil {
			t.Error(err)
		}
	}
	file := f.(osFile)
	if state := file.journal.state.Load(); (state == journalAsk || state == journalAskAttr) != (st.Type == ext4Magic) {
		t.Errorf("asks: %d, on a file system of type %#x", state, st.Type)
	}
	if n, err := unix.Flistxattr(int(file.Fd()), nil); n > 0 {
		t.Errorf("%d bytes of attributes, %v", n, err)
	}
}
