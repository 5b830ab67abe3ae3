package record

import "fmt"

// Merge appends to dst one uncompressed batch that holds the records of
// batches, which must follow each other without a gap. Offsets, timestamps,
// keys, values and headers stay as they are; the leader epoch is the first
// batch's. Batches with a producer id, transactional and control batches are
// refused, since their identity would be lost. On an error dst is returned as
// it was. Every batch must have passed [Batch.Verify].
func Merge(dst []byte, batches ...Batch) ([]byte, error) {
	if len(batches) == 0 {
		return dst, nil
	}
	next := batches[0].BaseOffset()
	for _, b := range batches {
		if b.BaseOffset() != next {
			return dst, fmt.Errorf("merge: batch at offset %d follows offset %d", b.BaseOffset(), next)
		}
		if err := b.plain(); err != nil {
			return dst, fmt.Errorf("merge: %w", err)
		}
		next = b.NextOffset()
	}
	first := batches[0]
	return rebuild(dst, first.BaseOffset(), first.LeaderEpoch(), first.BaseOffset(), next, batches...)
}

// Split appends to dst one uncompressed batch with the records of b whose
// offsets lie in [from, to), with their offsets. It refuses what [Merge]
// refuses, and an empty range.
func Split(dst []byte, b Batch, from, to int64) ([]byte, error) {
	from, to = max(from, b.BaseOffset()), min(to, b.NextOffset())
	if from >= to {
		return dst, fmt.Errorf("split: no record of [%d, %d) in the asked range", b.BaseOffset(), b.NextOffset())
	}
	if err := b.plain(); err != nil {
		return dst, fmt.Errorf("split: %w", err)
	}
	return rebuild(dst, from, b.LeaderEpoch(), from, to, b)
}

// plain tells whether taking the batch apart loses nothing.
func (b Batch) plain() error {
	switch {
	case b.ProducerID() >= 0:
		return fmt.Errorf("batch at offset %d has producer id %d", b.BaseOffset(), b.ProducerID())
	case b.Attributes()&(AttrTransactional|AttrControl) != 0:
		return fmt.Errorf("batch at offset %d is transactional (attributes %#x)", b.BaseOffset(), b.Attributes())
	case int64(b.Count()) != int64(b.lastDelta())+1:
		return fmt.Errorf("batch at offset %d has %d records in %d offsets", b.BaseOffset(), b.Count(), int64(b.lastDelta())+1)
	}
	return nil
}

func rebuild(dst []byte, base int64, epoch int32, from, to int64, batches ...Batch) ([]byte, error) {
	var d *Decompressor
	for _, b := range batches {
		if b.Codec() != CodecNone {
			d = decompressors.Get().(*Decompressor)
			defer decompressors.Put(d)
			break
		}
	}
	keep := len(dst)
	var bl Builder
	bl.Reset(dst)
	next := from
	for _, b := range batches {
		it := b.Iter(d)
		for it.nextRaw() {
			off := it.rec.Offset
			if off < from || off >= to {
				continue
			}
			if off != next {
				return bl.buf[:keep], corrupt("offset %d where %d belongs", off, next)
			}
			next++
			bl.AddEncoded(it.rec.Timestamp, it.tail)
		}
		if err := it.Err(); err != nil {
			return bl.buf[:keep], err
		}
	}
	if next != to {
		return bl.buf[:keep], corrupt("records end at offset %d instead of %d", next, to)
	}
	return bl.Finish(base, epoch), nil
}
