package storage_test

import (
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/wal"

	"tailrace/storage"
	"tailrace/storage/internal/durable"
)

// testFS is the operating system's file system without its fsyncs, which most
// tests do not need, and with a hook before every call.
type testFS struct {
	durable.OS
	real bool
	mu   sync.Mutex
	hook func(op, name string) error // "open", "write", "sync", "syncdir", "alive", "rename", "remove", "truncate"
	log  []string                    // of sync, syncdir and alive, while record is set
	rec  bool
}

func (f *testFS) call(op, name string) error {
	f.mu.Lock()
	h := f.hook
	if f.rec && (op == "sync" || op == "syncdir" || op == "alive") {
		f.log = append(f.log, op+" "+filepath.Base(name))
	}
	f.mu.Unlock()
	if h != nil {
		return h(op, name)
	}
	return nil
}

func (f *testFS) setHook(h func(op, name string) error) {
	f.mu.Lock()
	f.hook = h
	f.mu.Unlock()
}

func (f *testFS) OpenFile(name string, flag int, perm fs.FileMode) (storage.File, error) {
	if err := f.call("open", name); err != nil {
		return nil, err
	}
	file, err := f.OS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &testFile{File: file, fs: f, name: name}, nil
}

func (f *testFS) SyncDir(dir string) error {
	if err := f.call("syncdir", dir); err != nil {
		return err
	}
	if f.real {
		return f.OS.SyncDir(dir)
	}
	return nil
}

func (f *testFS) Rename(from, to string) error {
	if err := f.call("rename", to); err != nil {
		return err
	}
	return f.OS.Rename(from, to)
}

func (f *testFS) Remove(name string) error {
	if err := f.call("remove", name); err != nil {
		return err
	}
	return f.OS.Remove(name)
}

type testFile struct {
	storage.File
	fs   *testFS
	name string
}

func (f *testFile) Sync() error {
	if err := f.fs.call("sync", f.name); err != nil {
		return err
	}
	if f.fs.real {
		return f.File.Sync()
	}
	return nil
}

func (f *testFile) JournalAlive() error {
	if err := f.fs.call("alive", f.name); err != nil || !f.fs.real {
		return err
	}
	return f.File.(durable.Journaled).JournalAlive()
}

func (f *testFile) Write(b []byte) (int, error) {
	if err := f.fs.call("write", f.name); err != nil {
		return 0, err
	}
	return f.File.Write(b)
}

func (f *testFile) Truncate(n int64) error {
	if err := f.fs.call("truncate", f.name); err != nil {
		return err
	}
	return f.File.Truncate(n)
}

func onFS(f storage.FS) func(*storage.Config) {
	return func(c *storage.Config) { c.FS = f }
}

func segmentBytes(n int) func(*storage.Config) {
	return func(c *storage.Config) { c.Classes[0].SegmentBytes = n }
}

// quickDir is a directory in memory where there is one: the library's own fsyncs,
// which testFS does not reach, take most of the time of tests that reopen often.
func quickDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "tailrace-storage-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// copyDir copies a store's directory, which is closed or quiet.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(quickDir(t), "copy")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// segments are the segment files of a class, the oldest first.
func segments(t testing.TB, dir string) []string {
	t.Helper()
	ents, err := os.ReadDir(filepath.Join(dir, "main", "log"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range ents {
		if len(e.Name()) == 20 {
			names = append(names, filepath.Join(dir, "main", "log", e.Name()))
		}
	}
	sort.Strings(names)
	return names
}

func tailFile(t testing.TB, dir string) string {
	t.Helper()
	names := segments(t, dir)
	return names[len(names)-1]
}

// plainRead opens a copy of the class's log with the library alone and reads every
// entry of it.
func plainRead(t testing.TB, dir string) (entries int) {
	t.Helper()
	l, err := wal.Open(filepath.Join(copyDir(t, filepath.Join(dir, "main")), "log"), &wal.Options{AllowEmpty: true, SegmentCacheSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	for i := first; i <= last; i++ {
		b, err := l.Read(i)
		if err != nil {
			t.Fatalf("entry %d of [%d, %d]: %v", i, first, last, err)
		}
		if len(b) < 48 || b[0] != 'T' || b[1] != 'R' || binary.BigEndian.Uint64(b[16:]) != i {
			t.Fatalf("entry %d is not ours", i)
		}
		entries++
	}
	return entries
}

func mustRead(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustWrite(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o640); err != nil {
		t.Fatal(err)
	}
}

func repairs(s *storage.Store) string {
	var out []string
	for _, r := range s.Identity().Recovered {
		out = append(out, r.What)
	}
	return strings.Join(out, ",")
}
