package storagetest_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

// found is a record as read back.
type found struct {
	off int64
	n   uint64
	i   int
}

// readAll reads a partition through the store.
func readAll(p *storage.Partition) ([]found, error) {
	var out []found
	d := record.NewDecompressor(16 << 20)
	for off := p.Start(); off < p.HighWatermark(); {
		b, next, err := p.Read(nil, off, 64<<10)
		if err != nil {
			return nil, fmt.Errorf("read at %d: %w", off, err)
		}
		if next <= off {
			return nil, fmt.Errorf("read at %d gave nothing below the high watermark %d", off, p.HighWatermark())
		}
		for len(b) > 0 {
			batch, rest, err := record.Next(b)
			if err == nil {
				err = batch.Validate(d)
			}
			if err != nil {
				return nil, fmt.Errorf("batch at %d: %w", off, err)
			}
			it := batch.Iter(d)
			for it.Next() {
				r := it.Record()
				if r.Offset < p.Start() {
					continue // a batch across the start
				}
				if len(r.Value) < 12 {
					return nil, fmt.Errorf("offset %d: a value of %d bytes that nobody wrote", r.Offset, len(r.Value))
				}
				f := found{r.Offset, binary.BigEndian.Uint64(r.Value), int(binary.BigEndian.Uint32(r.Value[8:]))}
				if !bytes.Equal(r.Value, value(f.n, f.i)) {
					return nil, fmt.Errorf("offset %d: content of append %d record %d was altered", r.Offset, f.n, f.i)
				}
				out = append(out, f)
			}
			if it.Err() != nil {
				return nil, it.Err()
			}
			b = rest
		}
		off = next
	}
	return out, nil
}

// check compares the open store with the model and settles what was still open.
func (h *history) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.maybe {
		if t, ok := h.s.Topic(name); ok {
			h.topics[name] = len(t.Partitions())
			delete(h.maybe, name)
		}
	}
	h.last = map[string][]found{}
	seen := map[[2]uint64]int64{} // (append, record) to offset
	first := map[string]int64{}   // start of each partition
	for topic, n := range h.topics {
		t, ok := h.s.Topic(topic)
		if !ok || len(t.Partitions()) != n {
			return h.fail("topic %s with %d partitions was created and is gone", topic, n)
		}
		for i, p := range t.Partitions() {
			name := partName(topic, i)
			if s := p.Start(); s < h.sure[name] || s > h.starts[name] {
				return h.fail("%s starts at %d; asked for at most %d, acknowledged %d", name, s, h.starts[name], h.sure[name])
			}
			first[name] = p.Start()
			recs, err := readAll(p)
			if err != nil {
				return h.fail("%s: %v", name, err)
			}
			if int64(len(recs)) != p.HighWatermark()-p.Start() {
				return h.fail("%s: %d records in [%d, %d)", name, len(recs), p.Start(), p.HighWatermark())
			}
			h.last[name] = recs
			var last found
			for k, f := range recs {
				if f.off != p.Start()+int64(k) {
					return h.fail("%s: offset %d where %d is due", name, f.off, p.Start()+int64(k))
				}
				if f.n == 0 || f.n > uint64(len(h.subs)) || f.i >= len(h.subs[f.n-1].parts) || h.subs[f.n-1].parts[f.i] != name {
					return h.fail("%s: offset %d holds append %d record %d, which was never sent there", name, f.off, f.n, f.i)
				}
				if f.n < last.n || f.n == last.n && f.i <= last.i {
					return h.fail("%s: append %d record %d at offset %d after append %d record %d", name, f.n, f.i, f.off, last.n, last.i)
				}
				last = f
				seen[[2]uint64{f.n, uint64(f.i)}] = f.off
			}
		}
	}
	for _, u := range h.subs {
		there, gone := 0, 0
		for i, name := range u.parts {
			off, ok := seen[[2]uint64{u.n, uint64(i)}]
			switch {
			case ok && u.acked && off != u.base[i]:
				return h.fail("append %d record %d was acknowledged at %s offset %d and is at %d", u.n, i, name, u.base[i], off)
			case ok:
				there++
			case u.acked && u.base[i] < first[name]:
			case u.acked:
				return h.fail("append %d record %d was acknowledged at %s offset %d and is lost", u.n, i, name, u.base[i])
			case u.fate == landed: // may have been given up by SetStart
			default:
				gone++
			}
		}
		if there > 0 && gone > 0 {
			return h.fail("append %d is there in part: %d of %d records", u.n, there, there+gone)
		}
		if there > 0 && u.err != nil && !errors.Is(u.err, storage.ErrUncertain) {
			return h.fail("append %d was refused for certain (%v) and is there", u.n, u.err)
		}
		switch {
		case u.fate == lost && there > 0:
			return h.fail("append %d was lost in an earlier power cut and is back", u.n)
		case u.fate == landed && gone > 0:
			return h.fail("append %d survived an earlier power cut and is lost now", u.n)
		case u.acked || there > 0 || u.fate == landed:
			u.fate = landed
		default:
			u.fate = lost
		}
	}
	for _, class := range classes {
		got, _ := h.s.State(storage.KindMeta, class+".last")
		var last uint64
		if len(got) == 8 {
			last = binary.BigEndian.Uint64(got)
		}
		var w [3]uint64 // last, count and sum of what landed
		for _, u := range h.subs {
			if u.class != class {
				continue
			}
			if u.fate == landed {
				w[0], w[1], w[2] = max(w[0], u.n), w[1]+1, w[2]+u.n
			}
		}
		if last != w[0] {
			return h.fail("class %s: state says append %d was the last, the records say %d", class, last, w[0])
		}
		fold, _ := h.s.State(storage.KindWindow, class+".all")
		var count, sum uint64
		if len(fold) == 16 {
			count, sum = binary.BigEndian.Uint64(fold), binary.BigEndian.Uint64(fold[8:])
		}
		if count != w[1] || sum != w[2] {
			var list []string
			for _, u := range h.subs {
				if u.class == class && !u.acked {
					list = append(list, fmt.Sprintf("%d (%v, fate %d, %v)", u.n, u.parts, u.fate, u.err))
				}
			}
			return h.fail("class %s: folded state counts %d appends with sum %d, the records say %d with sum %d; not acknowledged: %v\nstarts %v sure %v", class, count, sum, w[1], w[2], list, h.starts, h.sure)
		}
	}
	return h.checkEpoch()
}

// checkEpoch: a new epoch where something was cut, none after a clean close.
func (h *history) checkEpoch() error {
	id := h.s.Identity()
	if h.judged == h.s {
		return nil // checked again since it was opened
	}
	h.judged = h.s
	cut := slices.ContainsFunc(id.Recovered, func(r storage.Repair) bool { return (r.What == "tail-cut" || r.What == "rot") && r.Bytes > 0 })
	switch {
	case id.Epoch.Number < h.epoch:
		return h.fail("epoch went back from %d to %d", h.epoch, id.Epoch.Number)
	case cut && id.Epoch.Number == h.epoch:
		return h.fail("recovery cut something and kept epoch %d: %+v", h.epoch, id.Recovered)
	case h.clean && id.Epoch.Number != h.epoch:
		return h.fail("a clean close was followed by epoch %d after %d: %+v", id.Epoch.Number, h.epoch, id.Recovered)
	}
	h.epoch = id.Epoch.Number
	return nil
}

// checkOracle closes the store in order and compares what the last check read with what the
// oracle reads from the files.
func (h *history) checkOracle() error {
	if err := h.end(); err != nil {
		return err
	}
	o, err := storagetest.ReadStore(h.dir())
	if err != nil {
		return h.fail("oracle: %v", err)
	}
	for class, l := range o.Logs {
		if len(l.Problems) > 0 || l.Cut > 0 {
			return h.fail("oracle, class %s: %d bytes behind the last commit, %v", class, l.Cut, l.Problems)
		}
	}
	for topic, n := range h.topics {
		for i := range n {
			name := partName(topic, i)
			recs := o.Partition(topic, i)
			if len(recs) != len(h.last[name]) {
				return h.fail("%s: the store reads %d records, the oracle %d", name, len(h.last[name]), len(recs))
			}
			for k, f := range h.last[name] {
				if r := recs[k]; r.Offset != f.off || !bytes.Equal(r.Value, value(f.n, f.i)) || r.Timestamp != stamp(f.n) || string(r.Key) != name {
					return h.fail("%s: the store reads append %d record %d at offset %d, the oracle something else at %d", name, f.n, f.i, f.off, r.Offset)
				}
			}
		}
	}
	for _, class := range classes {
		want := uint64(0)
		for _, u := range h.subs {
			if u.class == class && u.fate == landed {
				want = max(want, u.n)
			}
		}
		b := o.State[byte(storage.KindMeta)][class+".last"]
		if want > 0 && (len(b) != 8 || binary.BigEndian.Uint64(b) != want) {
			return h.fail("class %s: the oracle reads %x as the last append, it was %d", class, b, want)
		}
		var count, sum uint64
		for _, u := range h.subs {
			if u.class == class && u.fate == landed {
				count, sum = count+1, sum+u.n
			}
		}
		w, have := o.Folded[byte(storage.KindWindow)][class+".all"], []byte(nil)
		if len(w) > 0 {
			have = w[0]
			for _, delta := range w[1:] {
				have = countFold(have, delta)
			}
		}
		var got [2]uint64
		if len(have) == 16 {
			got = [2]uint64{binary.BigEndian.Uint64(have), binary.BigEndian.Uint64(have[8:])}
		}
		if got != [2]uint64{count, sum} {
			return h.fail("class %s: the oracle's window counts %d appends with sum %d, the records say %d with sum %d", class, got[0], got[1], count, sum)
		}
	}
	return nil
}
