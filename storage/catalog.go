package storage

import (
	"encoding/binary"
	"os"
	"slices"

	"tailrace/storage/internal/durable"
)

// catalog is one file with the summaries of all side files, one behind the other, so
// that opening a log of ten thousand segments reads one file and not ten thousand. It
// is a cache without fsync: each summary carries its CRC, of two for one segment the
// later counts, and one without its side file beside it counts for nothing. What it
// does not have is read from the side files, and then it is written anew.
type catalog struct {
	fs      FS
	path    string
	entries map[uint64]*segmentIndex // by first index; during Open only
	sides   []string                 // names of the side files there are, sorted; during Open only
	torn    bool                     // it ends in something else than a summary
	off     bool                     // a write failed: whole again with the next Open
	count   int                      // summaries in the file
}

// load reads the catalog and lists the side files.
func (k *catalog) load(idxDir string) {
	k.entries = make(map[uint64]*segmentIndex)
	ents, err := k.fs.ReadDir(idxDir)
	if err != nil {
		return
	}
	for _, e := range ents {
		k.sides = append(k.sides, e.Name())
	}
	b, err := durable.ReadFile(k.fs, k.path, maxSideFile)
	if err != nil {
		k.torn = true
		return
	}
	slab := make([]partIndex, len(b)/sidePart)
	for len(b) > 0 {
		n := summaryLen(b)
		if n == 0 || len(b) < n {
			k.torn = true
			return
		}
		x, err := decodeSideInto(slab, b[:n], false)
		if err != nil {
			k.torn = true
			return
		}
		k.entries[x.first] = x
		slab = slab[len(x.parts):]
		b = b[n:]
	}
}

// summary is readSide without the batches, from the catalog when it has the segment.
func (l *classLog) summary(seg *segment) (*segmentIndex, error) {
	if x := l.catalog.entries[seg.first]; x != nil && x.size == seg.size && l.catalog.hasSide(seg.first) {
		return x, nil
	}
	return readSide(l.s.cfg.FS, l.sidePath(seg.first), false)
}

func (k *catalog) hasSide(first uint64) bool {
	_, ok := slices.BinarySearch(k.sides, segmentName(first)+".idx")
	return ok
}

// settle ends the use of the catalog during Open: it is written anew unless all of it
// from the first segment on is what the log has.
func (k *catalog) settle(segs []*segment, indexes []*segmentIndex) error {
	sealed := len(segs) - 1
	k.count = len(k.entries)
	same, stale := !k.torn, 0
	for first := range k.entries {
		if first < segs[0].first {
			stale++
		}
	}
	same = same && len(k.entries)-stale == sealed && stale <= sealed+16
	for i := 0; i < sealed && same; i++ {
		same = k.entries[segs[i].first] == indexes[i]
	}
	k.entries, k.sides = nil, nil
	if same {
		return nil
	}
	var b []byte
	for _, x := range indexes[:sealed] {
		b = append(b, x.encodeSummary(0)...)
	}
	k.count = sealed
	err := k.write(os.O_TRUNC, b)
	if err != nil {
		k.fs.Remove(k.path)
	}
	return err
}

// add appends the summary of a segment that was just sealed. Once most of the file is of
// segments that are gone, before front, it is written anew without them; live is how
// many segments there are.
func (k *catalog) add(x *segmentIndex, front uint64, live int) error {
	if k.off {
		return nil
	}
	if k.count > 2*live+16 {
		if err := k.compact(front); err != nil {
			k.off = true
			return err
		}
	}
	k.count++
	return k.write(os.O_APPEND, x.encodeSummary(0))
}

func (k *catalog) compact(front uint64) error {
	b, err := durable.ReadFile(k.fs, k.path, maxSideFile)
	if err != nil {
		return err
	}
	var out []byte
	k.count = 0
	for n := summaryLen(b); n > 0 && n <= len(b); n = summaryLen(b) {
		if binary.BigEndian.Uint64(b[8:]) >= front {
			out = append(out, b[:n]...)
			k.count++
		}
		b = b[n:]
	}
	return k.write(os.O_TRUNC, out)
}

// summaryLen is the length of the summary that b begins with, 0 when b is too short to tell.
func summaryLen(b []byte) int {
	if len(b) < sideHeader+4 {
		return 0
	}
	return sideHeader + 4 + sidePart*int(binary.BigEndian.Uint32(b[48:])&0xffffff)
}

func (k *catalog) write(flag int, b []byte) error {
	f, err := k.fs.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|flag, filePerm)
	if err == nil {
		_, err = f.Write(b)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	k.off = err != nil
	return err
}
