package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/tidwall/wal"

	"tailrace/storage/internal/durable"
)

// ready returns nil when the log can be written, after reopening it if it was
// given up and the time for another attempt has come.
func (c *committer) ready() error {
	if c.broken == nil {
		return nil
	}
	if time.Now().Before(c.retryAt) {
		return c.broken
	}
	return c.reopen()
}

// fail gives the log up after a failed write or fsync: the group and everyone who
// waits behind it are told, the handle is thrown away, the files are cut back to what is durable, and
// the log is opened anew. Nothing is ever retried on the old handle: a second
// fsync may succeed without having written anything, and the library's memory no
// longer matches its file.
func (c *committer) fail(cause error) {
	l := c.l
	l.lg.Error("log failed; cutting back to what is durable", "err", cause)
	l.stats.failed(cause)
	if errors.Is(cause, ErrFull) {
		c.noSpace, c.freeAt = true, time.Time{}
		l.stats.setFull(true)
	}
	c.broken = cause
	c.retryAt = time.Time{}
	l.mu.Lock()
	c.group = append(c.group, l.queue...)
	clear(l.queue)
	l.queue = l.queue[:0]
	l.mu.Unlock()
	for len(c.refused) < len(c.group) {
		c.refused = append(c.refused, nil)
	}
	// Only now is it known whether the append is gone for good.
	if err := c.reopen(); err != nil {
		cause = fmt.Errorf("%w: %w", ErrUncertain, cause)
	}
	c.answer(cause)
}

// reopen cuts the log back to its durable end and opens it. On failure it sets
// the time of the next attempt; appends are refused with the error until then.
func (c *committer) reopen() error {
	l := c.l
	if c.wal != nil {
		closeWAL(c.wal) // its fsync's result means nothing any more
		c.wal = nil
	}
	if c.tail != nil {
		c.tail.Close()
		c.tail = nil
	}
	c.batch = wal.Batch{}
	err := l.cutToDurable()
	if err == nil {
		tail := l.tailSegment()
		err = l.openWAL(tail.last+1, tail)
	}
	if err != nil {
		c.backoff = min(max(2*c.backoff, time.Second), maxReopenWait)
		c.broken, c.retryAt = err, time.Now().Add(c.backoff)
		l.lg.Error("log stays closed", "err", err, "next_attempt_in", c.backoff)
		l.stats.setBroken(err)
		return err
	}
	c.broken, c.backoff = nil, 0
	l.stats.setBroken(nil)
	l.lg.Info("log reopened", "next_index", c.nextIndex)
	return nil
}

// cutToDurable removes from the directory what is not durable: bytes behind the
// durable end, segments begun since, and the rest of a truncation. Front segments
// that a truncation has already removed are forgotten.
func (l *classLog) cutToDurable() error {
	fsys := l.s.cfg.FS
	if err := l.finishTruncation(func(rep Repair) { l.lg.Warn("log repaired", "what", rep.What, "file", rep.File) }); err != nil {
		return err
	}
	ents, err := fsys.ReadDir(l.segDir)
	if err != nil {
		return &DiskError{"list", l.segDir, err}
	}
	tail := l.tailSegment()
	var front uint64
	for _, e := range ents {
		first, ok := segmentFirst(e.Name())
		switch {
		case !ok:
		case first > tail.first:
			path := filepath.Join(l.segDir, e.Name())
			if err := fsys.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return &DiskError{"remove", path, err}
			}
		case front == 0:
			front = first
		}
	}
	// Before the tail gets shorter: a later segment, removed now or by an attempt that
	// failed, that a power cut brings back behind a shorter tail would be a hole, and
	// recovery believes what comes after a hole.
	if err := l.syncSegDir(); err != nil {
		return err
	}
	if err := durable.CutFile(fsys, tail.path, tail.size); err != nil {
		return &DiskError{"cut", tail.path, err}
	}
	if err := l.syncSegDir(); err != nil {
		return err
	}
	sc, data, err := l.scan(tail)
	if err != nil {
		return err
	}
	if sc.damaged() || sc.tornAt != tail.size || sc.next != tail.last+1 {
		if err := l.mendTail(tail, sc, data); err != nil {
			return &DiskError{"verify", tail.path, fmt.Errorf("the durable part is damaged at byte %d of %d: restart to repair it: %w", sc.tornAt, tail.size, err)}
		}
	}
	return l.adoptFront(front)
}
