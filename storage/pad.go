package storage

// Padding. A commit that ends in the middle of a block has the next one write that block
// again. Where each commit is small and comes after a wait (flash), that is most of what
// the disk writes: so a commit may be filled up to the end of its block, when the next,
// if it is as large as usual, then touches one block less. What fills is part of a state
// entry: an operation that deletes a key of kindPad, which nobody sets.

const (
	blockBytes  = 4096 // of file systems and of the page cache; flash pages are a multiple
	minPadBytes = 4    // an operation with an empty key and value
)

// pad fills the commit in c.entries up to the end of a block, if that is worth it.
func (c *committer) pad() {
	if c.l.cfg.CommitInterval == 0 || len(c.entries) == 0 {
		return
	}
	var size, plain int64
	for i := range c.entries {
		n := stored(len(c.entries[i].buf))
		size += n
		plain += n + c.entries[i].saved
	}
	if c.usual == 0 {
		c.usual, c.plain = size, plain
	}
	c.usual += (size - c.usual) / 4
	c.plain += (plain - c.plain) / 4
	room := -(c.tailSize + size) & (blockBytes - 1)
	if !worthPadding(room, c.usual, c.plain) || c.tailSize+size+room >= int64(c.l.cfg.SegmentBytes) {
		return
	}
	last := &c.entries[len(c.entries)-1]
	if last.p == nil {
		if op := padOp(int64(len(last.buf)), room+stored(len(last.buf))); op >= 0 {
			last.buf = appendPad(last.buf, op)
		}
	} else if op := padOp(envelopeBytes, room); op >= 0 {
		c.entries = append(c.entries, pendingEntry{buf: appendPad(c.buffer(), op)})
	}
}

// worthPadding: with the rest of the block filled, a commit of the usual size touches
// fewer blocks, and takes at most half as much again as it would plain.
func worthPadding(room, usual, plain int64) bool {
	blocks := func(n int64) int64 { return (n + blockBytes - 1) / blockBytes }
	return room > 0 && usual+room <= plain+plain/2 && blocks(usual) < blocks(blockBytes-room+usual)
}

// stored is what an entry takes in a segment.
func stored(n int) int64 { return int64(n + uvarintLen(uint64(n))) }

// padOp returns the length of a key with which an entry of n bytes takes want bytes in
// the segment once the operation is in it, negative when none fits.
func padOp(n, want int64) int {
	for key := max(want-n-minPadBytes-8, 0); key <= want-n-minPadBytes; key++ {
		if stored(int(n)+minPadBytes-1+uvarintLen(uint64(key))+int(key)) == want {
			return int(key)
		}
	}
	return -1
}

var padKey [blockBytes]byte

func appendPad(b []byte, key int) []byte {
	return appendOp(b, kindPad, opDelete, padKey[:key], nil)
}
