package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"

	"tailrace/storage/internal/durable"
)

// A sector that the disk refuses to read is damage like any other once it was asked
// several times: its bytes count as zeros. What is different: that nothing at all can be
// read means that the disk is gone, and then nothing is lost; and the file itself, with
// its good sectors, is kept, so that the bad ones stay in use and ddrescue can try.

const (
	openRereads = 32 // of one class in one Open; a disk may take seconds for each
	liveRereads = 3
)

// salvage reads a file of the class's directory. What the disk refuses is zeros and named in bad.
func (l *classLog) salvage(path string, max int64) (data []byte, bad []durable.Range, err error) {
	patience := l.patience
	if patience == nil {
		patience = &durable.Patience{Left: liveRereads}
	}
	data, bad, err = durable.Salvage(l.s.cfg.FS, path, max, patience)
	if err != nil {
		return nil, nil, &DiskError{"read", path, err}
	}
	if len(bad) == 0 {
		return data, nil, nil
	}
	if badBytes(bad) == int64(len(data)) && !l.diskGives(path) {
		return nil, nil, &DiskError{"read", path, errDiskGone}
	}
	l.lg.Error("the disk refuses to read a part of a file: replace it soon", "file", path, "bytes", badBytes(bad), "of", len(data), "ranges", fmt.Sprint(bad))
	return data, bad, nil
}

var errDiskGone = fmt.Errorf("%w: nothing of this file or of any other beside it can be read: the disk is gone, or has lost its contact; nothing was changed: mend that, or copy it with ddrescue to a new one", syscall.EIO)

func badBytes(bad []durable.Range) (n int64) {
	for _, r := range bad {
		n += r.To - r.From
	}
	return n
}

// diskGives tells whether any other file of the class gives its first page.
func (l *classLog) diskGives(but string) bool {
	const most = 64 // of a directory, evenly; a dead disk may take seconds for each
	fsys := l.s.cfg.FS
	for _, dir := range []string{l.segDir, l.idxDir, filepath.Dir(l.segDir)} {
		ents, err := fsys.ReadDir(dir)
		if err != nil {
			continue
		}
		step := max(1, len(ents)/most)
		for i := len(ents) - 1; i >= 0; i -= step {
			path := filepath.Join(dir, ents[i].Name())
			if path == but || path == l.reserve.path || !ents[i].Type().IsRegular() {
				continue
			}
			if b, bad, err := durable.Salvage(fsys, path, 1, &durable.Patience{}); err == nil && len(b) > 0 && len(bad) == 0 {
				return true
			}
		}
	}
	return false
}

// inBad tells whether [from, to) of a file has unreadable bytes.
func inBad(bad []durable.Range, from, to int64) bool {
	return slices.ContainsFunc(bad, func(r durable.Range) bool { return r.From < to && from < r.To })
}

// linker is implemented by an FS that can give a file a second name.
type linker interface {
	Link(from, to string) error
}

// copyAside keeps a file that is about to be replaced. One that cannot be read whole gets a
// second name, where that can be done.
func copyAside(fsys FS, path, to string) error {
	b, bad, err := durable.Salvage(fsys, path, maxTwin, &durable.Patience{})
	if err != nil {
		return err
	}
	if l, ok := fsys.(linker); ok && len(bad) > 0 && l.Link(path, to) == nil {
		return fsys.SyncDir(filepath.Dir(to))
	}
	return durable.WriteFile(fsys, to, b, filePerm)
}

// asideAs is what a copy of a damaged file is called by.
func (sc *segmentScan) asideAs() string {
	if len(sc.bad) > 0 {
		return "unreadable"
	}
	return "rot"
}

// suspect is told by a reader that the disk has refused to read a part of a segment, or that
// its file is not there. The committer asks again; what the disk does not give then is
// declared, and the segment mended.
func (l *classLog) suspect(seg *segment, cause error) {
	if !durable.Unreadable(cause) && !errors.Is(cause, fs.ErrNotExist) {
		return
	}
	if _, known := l.suspects.LoadOrStore(seg, true); known {
		return
	}
	l.post(func() {
		defer l.suspects.Delete(seg)
		l.judge(seg)
	})
}

// judge runs on the committer.
func (l *classLog) judge(seg *segment) {
	if seg.clean == nil {
		if seg == l.tailSegment() || l.inLog(seg) {
			l.c.healOrLeave(seg)
		}
		return
	}
	_, bad, err := l.salvage(seg.path, seg.size)
	if errors.Is(err, fs.ErrNotExist) {
		if l.inClean(seg) && l.stillThere() == nil {
			for _, m := range l.missingOfClean(seg, &segmentScan{next: 1}) {
				l.damaged(m.p, seg, m.ref, err)
			}
		}
		return
	}
	if err != nil || len(bad) == 0 {
		if err != nil {
			l.lg.Error("a file of a compacted partition cannot be read now", "file", seg.path, "err", err)
		}
		return
	}
	x, err := l.indexLive(seg)
	if err != nil {
		l.lg.Error("a file of a compacted partition cannot be read now", "file", seg.path, "err", err)
		return
	}
	for i := range x.parts {
		p, ok := l.s.PartitionByID(x.parts[i].id)
		if !ok {
			continue
		}
		for _, r := range x.parts[i].refs {
			if !inBad(bad, r.pos, r.pos+int64(r.size)) {
				continue
			}
			if err := l.c.declareUnreadable(p, r); err != nil {
				l.lg.Error("declare what cannot be read", "err", err)
				return
			}
		}
	}
	l.s.cfg.FS.Remove(l.sideOf(seg))
}

// declareUnreadable makes the row of the ledger durable and then lets readers step over the
// batch: a disk that takes no row may be one that is gone, and may come back with all of it.
func (c *committer) declareUnreadable(p *Partition, r ref) error {
	if p.hasHole(r.base) {
		return nil
	}
	from := max(r.base, p.Start())
	if from >= r.next {
		return nil
	}
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.commitOps(c.l.appendLoss(nil, p, from, r.next, LossUnreadable)); err != nil {
		return err
	}
	p.addHole(r)
	p.forget(r)
	c.l.stats.damagedRecords(r.next - from)
	c.l.lg.Error("the disk refuses to read a batch; its records are lost here", "topic", p.topic.name, "partition", p.index, "from", from, "to", r.next)
	return nil
}

// forget takes a hole from those whose row is not durable yet.
func (p *Partition) forget(r ref) {
	p.mu.Lock()
	p.fresh = slices.DeleteFunc(p.fresh, func(h hole) bool { return h == hole{r.base, r.next} })
	p.mu.Unlock()
}

// missingOf is what the index of a segment of the log lacks of what the partitions know.
func (l *classLog) missingOf(seg *segment, x *segmentIndex) (missing []missingBatches) {
	for _, p := range l.partitions() {
		p.mu.RLock()
		i := slices.IndexFunc(p.spans, func(s span) bool { return s.seg == seg })
		if i < 0 {
			p.mu.RUnlock()
			continue
		}
		next, end := p.spans[i].base, p.spans[i].next
		p.mu.RUnlock()
		var refs []ref
		if part := x.part(p.id); part != nil {
			refs = part.refs
		}
		for _, r := range append(slices.Clone(refs), ref{base: end, next: end}) {
			if next < r.base {
				missing = append(missing, missingBatches{p, ref{base: next, next: r.base, pos: r.pos}})
			}
			next = r.next
		}
	}
	return missing
}
