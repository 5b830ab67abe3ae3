package storage

import (
	"os"
	"slices"
	"sync"
	"syscall"
)

const (
	maxOpenFiles  = 16
	maxCachedRefs = 1 << 15 // batches of sealed segments whose index stays in memory, per class
)

// fileCache keeps segment files open for reading.
type fileCache struct {
	fs   FS
	mu   sync.Mutex
	open map[string]*cachedFile
	tick uint64
}

type cachedFile struct {
	File
	users int
	used  uint64
	dead  bool // close with the last user
}

// get opens a segment, or finds it open. release it with put.
func (c *fileCache) get(path string) (*cachedFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick++
	if f := c.open[path]; f != nil {
		f.users++
		f.used = c.tick
		return f, nil
	}
	f, err := c.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	if c.open == nil {
		c.open = make(map[string]*cachedFile)
	}
	cf := &cachedFile{File: f, users: 1, used: c.tick}
	c.open[path] = cf
	c.evict()
	return cf, nil
}

func (c *fileCache) put(f *cachedFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.users--; f.users == 0 && f.dead {
		f.Close()
	}
}

// evict closes the idle file that was used longest ago while there are too many.
func (c *fileCache) evict() {
	for len(c.open) > maxOpenFiles {
		var oldest string
		for path, f := range c.open {
			if f.users == 0 && (oldest == "" || f.used < c.open[oldest].used) {
				oldest = path
			}
		}
		if oldest == "" {
			return
		}
		c.open[oldest].Close()
		delete(c.open, oldest)
	}
}

// drop forgets a file, for good or because it was replaced.
func (c *fileCache) drop(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.open[path]; f != nil {
		delete(c.open, path)
		if f.dead = true; f.users == 0 {
			f.Close()
		}
	}
}

func (c *fileCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, f := range c.open {
		delete(c.open, path)
		if f.dead = true; f.users == 0 {
			f.Close()
		}
	}
}

// sideCache keeps the whole indexes of sealed segments that were used lately.
type sideCache struct {
	mu   sync.Mutex
	list []cachedSide // the one used last at the end
	refs int
}

type cachedSide struct {
	seg *segment
	x   *segmentIndex
}

func (c *sideCache) get(seg *segment) *segmentIndex {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.list) - 1; i >= 0; i-- {
		if e := c.list[i]; e.seg == seg {
			if i != len(c.list)-1 {
				c.list = append(slices.Delete(c.list, i, i+1), e)
			}
			return e.x
		}
	}
	return nil
}

func (c *sideCache) put(seg *segment, x *segmentIndex) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, cachedSide{seg, x})
	c.refs += x.refCount()
	for len(c.list) > 1 && (c.refs > maxCachedRefs || len(c.list) > 64) {
		c.refs -= c.list[0].x.refCount()
		c.list = slices.Delete(c.list, 0, 1)
	}
}

func (c *sideCache) drop(seg *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.list {
		if c.list[i].seg == seg {
			c.refs -= c.list[i].x.refCount()
			c.list = slices.Delete(c.list, i, i+1)
			return
		}
	}
}

// index returns the whole index of a sealed segment: from memory, from its side
// file, or by reading the segment when the side file is absent or does not fit.
func (l *classLog) index(seg *segment) (*segmentIndex, error) {
	if x := l.side.get(seg); x != nil {
		return x, nil
	}
	x, missing, unreadable, err := l.readIndex(seg)
	if err == nil && unreadable && len(missing) > 0 { // no reader steps over it before it is declared
		err = &DiskError{"read", seg.path, syscall.EIO}
	}
	if err != nil {
		l.suspect(seg, err)
		return nil, err
	}
	for _, m := range missing {
		l.damaged(m.p, seg, m.ref, errDamaged)
	}
	l.side.put(seg, x)
	return x, nil
}

// missingBatches is a range that the index of a segment lacks which was made from what the
// disk still has of it: nobody will ask for these batches any more.
type missingBatches struct {
	p *Partition
	ref
}

// readIndex reads the index of a segment, or makes it; what it lacks then and is not
// declared is missing.
func (l *classLog) readIndex(seg *segment) (x *segmentIndex, missing []missingBatches, unreadable bool, err error) {
	x, err = readSide(l.s.cfg.FS, l.sideOf(seg), true)
	if err == nil && x.first == seg.first && x.last == seg.last && x.size == seg.size {
		return x, nil, false, nil
	}
	sc, _, serr := l.scan(seg)
	if serr != nil {
		return nil, nil, false, serr
	}
	x = collectIndex(sc, seg.first)
	x.last, x.size = seg.last, seg.size
	switch {
	case seg.clean != nil:
		missing = l.missingOfClean(seg, sc)
	case sc.damaged() || sc.tornAt < sc.size:
		missing = l.missingOf(seg, x)
	}
	missing = slices.DeleteFunc(missing, func(m missingBatches) bool { return m.p.hasHole(m.base) })
	if !sc.damaged() && sc.tornAt == sc.size {
		// A damaged one stays without a side file, so that the next Open reads
		// and repairs it. The floor 0 makes Open read more than it must.
		if err := writeSide(l.s.cfg.FS, l.sideOf(seg), x); err != nil {
			l.lg.Warn("write side file", "err", err)
		}
	}
	return x, missing, len(sc.bad) > 0, nil
}

func (x *segmentIndex) sortParts() {
	slices.SortFunc(x.parts, func(a, b partIndex) int { return int(int64(a.id) - int64(b.id)) })
}
