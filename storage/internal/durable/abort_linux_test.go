package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestJournalIsAsked with a call that writes nothing, every time; what says that there is
// none to ask ends the asking and is no failure.
func TestJournalIsAsked(t *testing.T) {
	defer func(f func(int, string, []byte, int) error) { setxattr = f }(setxattr)
	for _, tc := range []struct {
		says  error
		dead  bool
		asked int // in two times
	}{
		{unix.ENODATA, false, 2},
		{nil, false, 2},
		{unix.EROFS, true, 2},
		{unix.EIO, true, 2},
		{unix.ENOMEM, true, 2},
		{unix.EOPNOTSUPP, false, 1},
		{unix.EPERM, false, 1},
	} {
		file, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		f := osFile{file, new(journal)}
		f.journal.state.Store(journalAsk) // as on ext4
		asked, interrupted := 0, false
		setxattr = func(fd int, _ string, _ []byte, flags int) error {
			if fd != int(file.Fd()) || flags != unix.XATTR_REPLACE {
				t.Errorf("asked for %d with %d", fd, flags)
			}
			if interrupted = !interrupted; interrupted {
				return unix.EINTR
			}
			asked++
			return tc.says
		}
		for range 2 {
			if err := f.JournalAlive(); (err != nil) != tc.dead || tc.dead && !errors.Is(err, tc.says) {
				t.Errorf("%v: %v", tc.says, err)
			}
		}
		if asked != tc.asked {
			t.Errorf("%v: asked %d times, want %d", tc.says, asked, tc.asked)
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
	if asks := file.journal.state.Load() == journalAsk; asks != (st.Type == ext4Magic) {
		t.Errorf("asks: %v, on a file system of type %#x", asks, st.Type)
	}
	if n, err := unix.Flistxattr(int(file.Fd()), nil); n > 0 {
		t.Errorf("%d bytes of attributes, %v", n, err)
	}
}
