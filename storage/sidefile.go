package storage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"sort"

	"tailrace/storage/internal/durable"
)

// A side file describes a sealed segment, so that opening and looking up need not
// read it. It is written without fsync, carries its own CRCs, and is rebuilt from
// the segment when it is absent or does not fit. Big endian:
//
//	 0  4 magic "TRIX"
//	 4  4 version = 1
//	 8  8 first log index
//	16  8 last log index
//	24  8 size of the segment in bytes
//	32  8 newest commit time in it, ms
//	40  8 state floor: entries below this index are not needed to know the state
//	48  4 number of partitions N
//	52  4 bytes of the batch list R
//	56 48N per partition: id 4, batches 4, first offset 8, next offset 8,
//	       least time 8, greatest time 8, bytes 8
//	    4 crc32c of all before
//	    R batch list: per partition in the same order, per batch varints:
//	       position - end of the previous (unsigned), size (unsigned),
//	       base offset - next of the previous (unsigned), offsets (unsigned),
//	       greatest time - that of the previous (signed),
//	       greatest - least time + 1 (unsigned), 0 when the least is unknown
//	    4 crc32c of the batch list
const (
	sideHeader  = 56
	sidePart    = 48
	sideVersion = 1
	maxSideFile = 256 << 20
)

// partIndex is the part of a segment's index that belongs to a partition.
type partIndex struct {
	id    PartitionID
	refs  []ref
	count int   // of refs, also when they are not loaded
	bytes int64 // of entries
	ref         // base, next, min, max over all
}

// segmentIndex is the content of a side file; refs are there when it was loaded
// whole.
type segmentIndex struct {
	first, last uint64
	size        int64
	arrival     int64
	floor       uint64
	parts       []partIndex // by id
}

func (x *segmentIndex) part(id PartitionID) *partIndex {
	i := sort.Search(len(x.parts), func(i int) bool { return x.parts[i].id >= id })
	if i < len(x.parts) && x.parts[i].id == id {
		return &x.parts[i]
	}
	return nil
}

func (x *segmentIndex) refCount() (n int) {
	for i := range x.parts {
		n += x.parts[i].count
	}
	return n
}

// newPartIndex sums up refs, which are in order and not empty.
func newPartIndex(id PartitionID, refs []ref) partIndex {
	p := partIndex{id: id, refs: refs, count: len(refs), ref: refs[0]}
	p.next = refs[len(refs)-1].next
	for i := range refs {
		p.min, p.max = min(p.min, refs[i].min), max(p.max, refs[i].max)
		p.bytes += int64(refs[i].size)
	}
	return p
}

func (x *segmentIndex) encode() []byte {
	var list []byte
	for i := range x.parts {
		end, next, prev := int64(0), int64(0), int64(0)
		for j := range x.parts[i].refs {
			r := &x.parts[i].refs[j]
			list = binary.AppendUvarint(list, uint64(r.pos-end))
			list = binary.AppendUvarint(list, uint64(r.size))
			list = binary.AppendUvarint(list, uint64(r.base-next))
			list = binary.AppendUvarint(list, uint64(r.next-r.base))
			list = binary.AppendVarint(list, r.max-prev)
			if r.min == unknownTime {
				list = append(list, 0)
			} else {
				list = binary.AppendUvarint(list, uint64(r.max-r.min)+1)
			}
			end, next, prev = r.pos+int64(r.size), r.next, r.max
		}
	}
	b := x.encodeSummary(len(list))
	b = append(b, list...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(list, castagnoli))
}

// encodeSummary is all before the batch list, which takes listLen bytes.
func (x *segmentIndex) encodeSummary(listLen int) []byte {
	b := make([]byte, 0, sideHeader+sidePart*len(x.parts)+listLen+8)
	b = append(b, "TRIX"...)
	b = binary.BigEndian.AppendUint32(b, sideVersion)
	b = binary.BigEndian.AppendUint64(b, x.first)
	b = binary.BigEndian.AppendUint64(b, x.last)
	b = binary.BigEndian.AppendUint64(b, uint64(x.size))
	b = binary.BigEndian.AppendUint64(b, uint64(x.arrival))
	b = binary.BigEndian.AppendUint64(b, x.floor)
	b = binary.BigEndian.AppendUint32(b, uint32(len(x.parts)))
	b = binary.BigEndian.AppendUint32(b, uint32(listLen))
	for i := range x.parts {
		p := &x.parts[i]
		b = binary.BigEndian.AppendUint32(b, uint32(p.id))
		b = binary.BigEndian.AppendUint32(b, uint32(p.count))
		for _, v := range [...]int64{p.base, p.next, p.min, p.max, p.bytes} {
			b = binary.BigEndian.AppendUint64(b, uint64(v))
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeSide reads a side file; with whole false, b may end after the summary.
func decodeSide(b []byte, whole bool) (*segmentIndex, error) { return decodeSideInto(nil, b, whole) }

// decodeSideInto takes the parts from slab when it is large enough.
func decodeSideInto(slab []partIndex, b []byte, whole bool) (*segmentIndex, error) {
	if len(b) < sideHeader+4 || string(b[:4]) != "TRIX" || binary.BigEndian.Uint32(b[4:]) != sideVersion {
		return nil, fmt.Errorf("not a side file of version %d", sideVersion)
	}
	u64 := binary.BigEndian.Uint64
	x := &segmentIndex{first: u64(b[8:]), last: u64(b[16:]), size: int64(u64(b[24:])), arrival: int64(u64(b[32:])), floor: u64(b[40:])}
	n, listLen := uint64(binary.BigEndian.Uint32(b[48:])), uint64(binary.BigEndian.Uint32(b[52:]))
	end := sideHeader + sidePart*n
	if end+4 > uint64(len(b)) {
		return nil, errSideShort
	}
	if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return nil, fmt.Errorf("crc of the side file's summary differs")
	}
	if x.parts = slab; uint64(len(x.parts)) < n {
		x.parts = make([]partIndex, n)
	}
	x.parts = x.parts[:n:n]
	for i := range x.parts {
		q := b[sideHeader+sidePart*i:]
		p := &x.parts[i]
		p.id, p.count = PartitionID(binary.BigEndian.Uint32(q)), int(binary.BigEndian.Uint32(q[4:]))
		p.base, p.next, p.min, p.max, p.bytes = int64(u64(q[8:])), int64(u64(q[16:])), int64(u64(q[24:])), int64(u64(q[32:])), int64(u64(q[40:]))
	}
	if !whole {
		return x, nil
	}
	list := b[end+4:]
	if uint64(len(list)) != listLen+4 || crc32.Checksum(list[:listLen], castagnoli) != binary.BigEndian.Uint32(list[listLen:]) {
		return nil, fmt.Errorf("crc of the side file's batch list differs")
	}
	return x, x.decodeList(list[:listLen])
}

func (x *segmentIndex) decodeList(list []byte) error {
	ok := true
	uv := func() int64 {
		v, w := binary.Uvarint(list)
		if w <= 0 || int64(v) < 0 {
			ok = false
			return 0
		}
		list = list[w:]
		return int64(v)
	}
	for i := range x.parts {
		p := &x.parts[i]
		if p.count > len(list)/6 {
			return fmt.Errorf("side file lists fewer batches than it counts")
		}
		p.refs = make([]ref, p.count)
		end, next, prev := int64(0), int64(0), int64(0)
		for j := range p.refs {
			r := &p.refs[j]
			r.pos = end + uv()
			r.size = int32(uv())
			r.base = next + uv()
			r.next = r.base + uv()
			d, w := binary.Varint(list)
			if w <= 0 {
				return fmt.Errorf("side file's batch list ends early")
			}
			list = list[w:]
			r.max = prev + d
			if r.min = unknownTime; true {
				if back := uv(); back > 0 {
					r.min = r.max - (back - 1)
				}
			}
			if !ok || r.size < envelopeBytes || r.pos+int64(r.size) > x.size {
				return fmt.Errorf("side file's batch list does not fit its segment")
			}
			end, next, prev = r.pos+int64(r.size), r.next, r.max
		}
	}
	return nil
}

var errSideShort = fmt.Errorf("side file is longer than what was read")

// readSide reads the side file of a segment: the summary, or all of it.
func readSide(fsys FS, name string, whole bool) (*segmentIndex, error) {
	if !whole {
		b, err := durable.ReadFile(fsys, name, 4096)
		if err != nil {
			return nil, err
		}
		x, err := decodeSide(b, false)
		if err != errSideShort {
			return x, err
		}
	}
	b, err := durable.ReadFile(fsys, name, maxSideFile)
	if err != nil {
		return nil, err
	}
	return decodeSide(b, whole)
}

// writeSide writes a side file without fsync: a torn one is found by its CRC.
func writeSide(fsys FS, name string, x *segmentIndex) error {
	f, err := fsys.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	_, err = f.Write(x.encode())
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// collectIndex makes the index of a scanned segment.
func collectIndex(sc *segmentScan, first uint64) *segmentIndex {
	x := &segmentIndex{first: first, last: sc.next - 1, size: sc.end}
	refs := make(map[PartitionID][]ref)
	for i := range sc.entries {
		e := &sc.entries[i]
		if e.damaged {
			continue
		}
		x.arrival = max(x.arrival, e.env.time)
		if e.env.kind != entryData {
			continue
		}
		if r, ok := dataRef(&e.env, e.body); ok {
			refs[e.env.partition] = append(refs[e.env.partition], r)
		}
	}
	for id, rs := range refs {
		x.parts = append(x.parts, newPartIndex(id, rs))
	}
	x.sortParts()
	return x
}
