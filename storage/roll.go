package storage

import (
	"path/filepath"
)

// roll ends the tail before it is full and begins a new segment, so that what the tail
// holds can be given up: between two commits, when everything is durable. The library
// rolls only by itself; so it is closed, the new segment made durable, and opened anew,
// as after a crash between a roll and the first commit behind it.
func (c *committer) roll() error {
	l := c.l
	seg := &segment{first: c.nextIndex, last: c.nextIndex - 1, path: filepath.Join(l.segDir, segmentName(c.nextIndex))}
	if err := closeWAL(c.wal); err != nil {
		c.wal = nil
		return &DiskError{"fsync", l.segDir, err}
	}
	c.wal = nil
	c.tail.Close()
	c.tail = nil
	if err := l.createSegment(seg); err != nil {
		return err
	}
	c.addTail(seg)
	c.rolled = true
	return l.openWAL(c.nextIndex, seg)
}

// addTail seals the tail and makes seg, which is empty, the new one.
func (c *committer) addTail(seg *segment) {
	l := c.l
	c.seal(l.tailSegment(), seg.first)
	l.segMu.Lock()
	l.sealed += l.segs[len(l.segs)-1].size
	l.segs = append(l.segs, seg)
	l.segMu.Unlock()
}
