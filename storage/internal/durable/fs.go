// Package durable holds the file operations under package storage: a small
// file system interface, the operating system behind it, and files that are
// replaced as a whole and survive a power cut.
//
// Nothing in package storage touches the disk by another way, but for the calls
// tidwall/wal makes itself (write and fsync of a segment, the files of a
// truncation).
package durable

import (
	"io"
	"io/fs"
)

// FS is what package storage asks of a file system. Paths are those of the
// operating system. An implementation is safe for concurrent use.
type FS interface {
	MkdirAll(dir string, perm fs.FileMode) error
	// OpenFile takes the flags of package os.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	ReadDir(dir string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes the names in dir durable: files created, renamed, removed.
	SyncDir(dir string) error
	// Lock takes an exclusive lock that ends with the process, and fails at
	// once when another process (or handle) holds it.
	Lock(name string) (io.Closer, error)
	// Free tells how many bytes an ordinary user may still write below dir;
	// negative when unknown.
	Free(dir string) (int64, error)
}

// File is an open file.
type File interface {
	io.Reader
	io.ReaderAt
	io.Writer
	io.Closer
	// Sync returns when the bytes written so far, by any descriptor, and the
	// length are on the disk (fdatasync where there is one).
	Sync() error
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// Journaled is implemented by a File whose file system may lose its journal while Sync and
// SyncDir go on to succeed. What they said before JournalAlive returned nil is true, of every
// file and directory of this file system.
type Journaled interface {
	JournalAlive() error
}
