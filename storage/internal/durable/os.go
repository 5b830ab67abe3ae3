package durable

import (
	"io/fs"
	"os"
)

// OS is the file system of the operating system.
type OS struct{}

func (OS) MkdirAll(dir string, perm fs.FileMode) error { return os.MkdirAll(dir, perm) }

func (OS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f, new(journal)}, nil
}

func (OS) ReadDir(dir string) ([]fs.DirEntry, error) { return os.ReadDir(dir) }

func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Link gives a file a second name.
func (OS) Link(from, to string) error { return os.Link(from, to) }

func (OS) Remove(name string) error { return os.Remove(name) }

// osFile is an *os.File whose Sync is fdatasync: the time of the last change,
// which fsync would add, costs a journal commit and is of no use to a log.
type osFile struct {
	*os.File
	journal *journal
}

func (f osFile) Sync() error { return datasync(f.File) }

var _ Journaled = osFile{}

func (f osFile) JournalAlive() error { return f.journal.alive(f.File) }
