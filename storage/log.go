package storage

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tidwall/wal"

	"tailrace/storage/internal/durable"
)

const (
	// maxPreallocate: larger segments are not for flash, and would take too much of a disk at once.
	maxPreallocate = 4 << 20

	dirPerm  = fs.FileMode(0o750)
	filePerm = fs.FileMode(0o640)
)

// classLog is the commit log of one storage class: a queue, one committer
// goroutine that owns the tidwall/wal handle, and the index of what is durable.
type classLog struct {
	s   *Store
	cfg ClassConfig
	lg  *slog.Logger

	segDir, idxDir, quarDir, cleanDir string

	// The queue. Guarded by mu.
	mu      sync.Mutex
	queue   []request
	tasks   []func() // run by the committer between commits
	waiting int64    // bytes submitted and not answered
	hurry   bool     // one of the queue does not wait for CommitInterval
	closed  bool
	room    sync.Cond     // waiting went down, or closed
	wake    chan struct{} // capacity 1: the committer has something to look at
	done    chan struct{} // closed when the committer has ended
	running bool          // the committer was started; owned by Open

	c committer // owned by the committer goroutine

	// The index of durable segments, the tail last. Guarded by segMu; sizes of
	// the tail change under it.
	segMu  sync.RWMutex
	segs   []*segment
	sealed int64 // bytes of all but the tail

	catalog catalog     // owned by the committer after Open
	twin    twin        // owned by the committer after Open
	reserve ballast     // owned by the committer after Open
	asked   atomic.Bool // by a class of lower rank, to give up what the hub has

	// Files of compacted partitions. Owned by who has Store.compactMu, and by Open.
	cleanNum   uint64 // the highest number in use or used
	cleanBytes atomic.Int64

	patience *durable.Patience // during Open
	suspects sync.Map          // segments that a reader could not read, until the committer has looked

	undeclared []func() // damage whose row could not be made durable; owned by the committer

	state *stateMap
	files fileCache
	side  sideCache
	stats logStats
}

func joinSegment(dir string, first uint64) string { return filepath.Join(dir, segmentName(first)) }

func checksumString(s string) uint32 { return crc32.Checksum([]byte(s), castagnoli) }

// request is an append on its way.
type request struct {
	a    *Append
	done func(*Append, error)
}

// segment is one file of the log.
type segment struct {
	first uint64 // index of its first entry
	last  uint64 // first-1 when empty
	size  int64  // durable bytes
	// arrival is the newest commit time in it.
	arrival int64
	path    string
	clean   *cleanFile // of a compacted partition, not of the log
	// unreadable: the disk refused to read a part of it when it was opened.
	unreadable bool
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d", first) }

// segmentFirst is the inverse of segmentName.
func segmentFirst(name string) (uint64, bool) {
	if len(name) != 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(name, 10, 64)
	return n, err == nil && n > 0
}

func (l *classLog) sidePath(first uint64) string {
	return filepath.Join(l.idxDir, segmentName(first)+".idx")
}

// sideOf is the path of a segment's side file.
func (l *classLog) sideOf(seg *segment) string {
	if seg.clean != nil {
		return seg.path + ".idx"
	}
	return l.sidePath(seg.first)
}

func newClassLog(s *Store, cfg ClassConfig) *classLog {
	dir := filepath.Join(s.cfg.Dir, cfg.Name)
	l := &classLog{
		s: s, cfg: cfg,
		lg:     s.cfg.Logger.With("class", cfg.Name),
		segDir: filepath.Join(dir, "log"), idxDir: filepath.Join(dir, "index"), quarDir: filepath.Join(dir, "quarantine"),
		cleanDir: filepath.Join(dir, "compact"),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		state:    newStateMap(s.cfg.Folds),
	}
	l.room.L = &l.mu
	l.files.fs = s.cfg.FS
	l.catalog = catalog{fs: s.cfg.FS, path: filepath.Join(dir, "catalog")}
	l.reserve.fs, l.reserve.path = s.cfg.FS, filepath.Join(dir, "reserve")
	l.reserve.size = min(int64(cfg.SegmentBytes), maxBallast) + 64<<10
	l.twin = twin{fs: s.cfg.FS, path: filepath.Join(dir, "twin"), whole: l.twinWhole, ends: l.ends}
	l.c.init(l)
	return l
}

// openWAL opens the library's log on a directory that recovery has left in
// order, and an own descriptor of the tail.
func (l *classLog) openWAL(nextIndex uint64, tail *segment) error {
	w, err := wal.Open(l.segDir, &wal.Options{
		NoSync: true, AllowEmpty: true, SegmentCacheSize: 1,
		SegmentSize: l.cfg.SegmentBytes, DirPerms: dirPerm, FilePerms: filePerm,
	})
	if err != nil {
		return &DiskError{"open log", l.segDir, err}
	}
	last, err := w.LastIndex()
	if err == nil && last+1 != nextIndex {
		err = fmt.Errorf("last entry is %d, recovery found %d", last, nextIndex-1)
	}
	if err == nil {
		// The first open of a new log creates the file.
		err = l.s.cfg.FS.SyncDir(l.segDir)
	}
	var f File
	if err == nil {
		f, err = l.s.cfg.FS.OpenFile(tail.path, os.O_RDWR, filePerm)
	}
	if err == nil {
		if err = believe(f); err != nil {
			f.Close()
		}
	}
	if err != nil {
		closeWAL(w)
		return &DiskError{"open log", l.segDir, err}
	}
	l.preallocate(tail.path)
	l.c.wal, l.c.tail, l.c.nextIndex = w, f, nextIndex
	l.c.tailSize, l.c.lent = tail.size, false
	return nil
}

// believe tells whether the fsyncs up to now, of all of the file system that f is on, were
// true ones. What they are relied upon for is said, or done, after the log was opened or a
// commit has ended, so there it is asked.
func believe(f File) error {
	if j, ok := f.(durable.Journaled); ok {
		return j.JournalAlive()
	}
	return nil
}

// preallocator is implemented by an FS that can give a file blocks beyond its length.
type preallocator interface {
	Preallocate(name string, size int64) error
}

// preallocate gives a new tail all its blocks at once. Else every fsync allocates one
// and writes the maps of the file system with it: 8 KB of 28 a commit on ext4. That it
// fails does not matter.
func (l *classLog) preallocate(path string) {
	l.c.allocated = 0
	a, ok := l.s.cfg.FS.(preallocator)
	size := int64(l.cfg.SegmentBytes)
	if !ok || size > maxPreallocate {
		return
	}
	// Not out of the reserve: what is given up needs it.
	if free, err := l.s.cfg.FS.Free(l.segDir); err == nil && free >= max(l.cfg.MinFreeBytes, 0)+size && a.Preallocate(path, size) == nil {
		l.c.allocated = size
	}
}

// tailSegment is the newest one.
func (l *classLog) tailSegment() *segment {
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	return l.segs[len(l.segs)-1]
}

// frontIndex is the index that the log begins with.
func (l *classLog) frontIndex() uint64 {
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	return l.segs[0].first
}

func (l *classLog) diskBytes() int64 {
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	if len(l.segs) == 0 {
		return 0 // not open yet
	}
	return l.sealed + l.segs[len(l.segs)-1].size + l.cleanBytes.Load()
}

// setSegments replaces the segments. The caller has segMu.
func (l *classLog) setSegments(segs []*segment) {
	l.segs, l.sealed = segs, 0
	for _, seg := range segs[:len(segs)-1] {
		l.sealed += seg.size
	}
}

// quarantine moves (or copies) a file of the log aside. It is best effort: what
// it keeps is for a human; the log goes on without. It keeps no more than
// maxQuarantineBytes.
func (l *classLog) quarantine(path, suffix string, move bool) string {
	const maxQuarantineBytes = 64 << 20
	fsys := l.s.cfg.FS
	if l.s.keepAll && !move {
		return ""
	}
	var total int64
	if ents, err := fsys.ReadDir(l.quarDir); err == nil {
		for _, e := range ents {
			if fi, err := e.Info(); err == nil {
				total += fi.Size()
			}
		}
	}
	to := filepath.Join(l.quarDir, fmt.Sprintf("%s.%s.%d", filepath.Base(path), suffix, l.s.cfg.Now().UnixMilli()))
	fi, err := fsys.Stat(path)
	if err != nil {
		return ""
	}
	if total+fi.Size() > maxQuarantineBytes && !l.s.keepAll {
		l.lg.Warn("quarantine is full, not kept", "file", path, "directory", l.quarDir)
		if move {
			fsys.Remove(path)
		}
		return ""
	}
	if move {
		err = fsys.Rename(path, to)
	} else {
		err = copyAside(fsys, path, to)
	}
	if err != nil {
		l.lg.Warn("quarantine", "file", path, "err", err)
		if move && !l.s.keepAll {
			fsys.Remove(path)
		}
		return ""
	}
	return to
}

// finishTruncation removes what the library left of a TruncateFront that did not
// end, or completes it, so that it finds only whole segments.
func (l *classLog) finishTruncation(report func(Repair)) error {
	_, err := l.listWhole(report)
	return err
}

// listWhole is finishTruncation, and lists the directory as it is then.
func (l *classLog) listWhole(report func(Repair)) ([]fs.DirEntry, error) {
	ents, err := l.s.cfg.FS.ReadDir(l.segDir)
	if err != nil {
		return nil, &DiskError{"list", l.segDir, err}
	}
	for _, e := range ents {
		if _, ok := segmentFirst(e.Name()); ok {
			continue
		}
		if err := l.clearTruncation(ents, report); err != nil {
			return nil, err
		}
		if ents, err = l.s.cfg.FS.ReadDir(l.segDir); err != nil {
			return nil, &DiskError{"list", l.segDir, err}
		}
		break
	}
	return ents, nil
}

// clearTruncation is finishTruncation for a directory with more than segments in it.
func (l *classLog) clearTruncation(ents []fs.DirEntry, report func(Repair)) error {
	fsys := l.s.cfg.FS
	var start string
	changed := false
	for _, e := range ents { // sorted: the last START wins, as in the library
		name := e.Name()
		path := filepath.Join(l.segDir, name)
		switch {
		case strings.HasSuffix(name, ".TEMP"), strings.HasSuffix(name, ".tmp"):
			if err := fsys.Remove(path); err != nil {
				return &DiskError{"remove", path, err}
			}
			changed = true
			report(Repair{File: name, What: "temp-removed"})
		case strings.HasSuffix(name, ".START"):
			start = name
		case strings.HasSuffix(name, ".END"): // never ours
			l.quarantine(path, "foreign", true)
			changed = true
			report(Repair{File: name, What: "quarantined", Detail: "unknown truncation"})
		}
	}
	if start == "" {
		if changed {
			return l.syncSegDir()
		}
		return nil
	}
	path := filepath.Join(l.segDir, start)
	first, ok := segmentFirst(strings.TrimSuffix(start, ".START"))
	sound := ok
	if ok {
		b, _, err := l.salvage(path, maxSegmentBytes+maxEntryBytes)
		if err != nil {
			return err
		}
		sc, err := scanSegment(b, first)
		if err != nil {
			return err
		}
		sound = len(sc.entries) > 0 && !sc.damaged() && sc.tornAt == sc.size
	}
	if !sound {
		// Its fsync came before its name, so only a lying disk gets here. The
		// segments it was to replace decide.
		l.quarantine(path, "truncation", true)
		report(Repair{File: start, What: "quarantined", Detail: "damaged truncation"})
		return l.syncSegDir()
	}
	for _, e := range ents {
		if n, ok := segmentFirst(strings.TrimSuffix(e.Name(), ".START")); ok && n <= first && e.Name() != start {
			if err := fsys.Remove(filepath.Join(l.segDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return &DiskError{"remove", e.Name(), err}
			}
		}
	}
	if err := fsys.Rename(path, filepath.Join(l.segDir, segmentName(first))); err != nil {
		return &DiskError{"rename", path, err}
	}
	report(Repair{File: start, What: "truncation-finished"})
	return l.syncSegDir()
}

func (l *classLog) syncSegDir() error {
	if err := l.s.cfg.FS.SyncDir(l.segDir); err != nil {
		return &DiskError{"fsync directory", l.segDir, err}
	}
	return nil
}

func (l *classLog) nowMS() int64 { return l.s.cfg.Now().UnixMilli() }

// wakeup tells the committer to look.
func (l *classLog) wakeup() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// logStats are counters of one class; guarded by their mu.
type logStats struct {
	mu sync.Mutex
	ClassStats
}
