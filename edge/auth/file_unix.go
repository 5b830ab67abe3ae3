//go:build unix

package auth

import (
	"fmt"
	"os"
	"syscall"
)

// lockDir keeps two editors of one file apart; a reader needs no lock.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		d.Close()
		return nil, err
	}
	return func() { d.Close() }, nil
}

// sameOwner gives f the owner of file: root edits what a daemon under another user reads.
func sameOwner(f *os.File, file string) error {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(s.Uid) == os.Geteuid() && int(s.Gid) == os.Getegid() {
		return nil
	}
	if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
		return fmt.Errorf("the new file would have another owner than %s: %w", file, err)
	}
	return nil
}
