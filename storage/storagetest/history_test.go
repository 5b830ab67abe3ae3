package storagetest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

// A history is one store's life through several power cuts, beside a model of slices: what
// was submitted, what was acknowledged, what was found.
type history struct {
	seed  uint64
	base  string
	r     *rand.Rand
	fs    *storagetest.CrashFS
	s     *storage.Store
	gen   int
	clean bool // the last end was a clean close

	faulty bool // calls are made to fail: errors are expected
	free   bool // what shares a commit depends on the machine; else on the seed alone

	mu     sync.Mutex
	subs   []*sub           // in order of submission; guarded by mu for acked and err
	topics map[string]int   // created for certain: partitions
	maybe  map[string]int   // CreateTopic failed: may exist
	starts map[string]int64 // by partition: highest start asked for
	sure   map[string]int64 // by partition: highest start that was acknowledged
	epoch  int32
	judged *storage.Store     // the opening that checkEpoch has seen
	last   map[string][]found // by partition: what check has read
	fates  []string           // what each power cut left, in words
}

// sub is one submitted append: its records become durable together, or none does.
type sub struct {
	n     uint64
	class string
	parts []string // partition of each record
	base  []int64  // after an ack

	acked bool
	err   error
	fate  fate
}

type fate uint8

const (
	open fate = iota
	landed
	lost
)

var classes = []string{"main", "bulk"}

func config(dir string, fs storage.FS, r *rand.Rand) storage.Config {
	cfg := storage.Config{
		Dir: dir, FS: fs, NodeID: "n1", RetentionInterval: -1, Now: wild(),
		Folds: map[storage.StateKind]storage.FoldFunc{storage.KindWindow: countFold},
		Rand:  rand.NewChaCha8([32]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}),
	}
	for _, c := range classes {
		cfg.Classes = append(cfg.Classes, storage.ClassConfig{Name: c, SegmentBytes: 4 << 10, MinFreeBytes: 1})
	}
	return cfg
}

// countFold keeps a count and a sum of the numbers given to it.
func countFold(old, delta []byte) []byte {
	var count, sum uint64
	if len(old) == 16 {
		count, sum = binary.BigEndian.Uint64(old), binary.BigEndian.Uint64(old[8:])
	}
	out := binary.BigEndian.AppendUint64(nil, count+1)
	return binary.BigEndian.AppendUint64(out, sum+binary.BigEndian.Uint64(delta))
}

func newHistory(seed uint64, base string) *history {
	return &history{
		seed: seed, base: base, r: rand.New(rand.NewPCG(seed, 1)), free: seed%4 == 0,
		topics: map[string]int{}, maybe: map[string]int{}, starts: map[string]int64{}, sure: map[string]int64{},
	}
}

func (h *history) dir() string { return filepath.Join(h.base, fmt.Sprintf("gen-%d", h.gen)) }

func (h *history) fail(format string, args ...any) error {
	return fmt.Errorf("seed %d, generation %d (disk %s): %s\npower cuts so far:\n  %s",
		h.seed, h.gen, h.dir(), fmt.Sprintf(format, args...), joinLines(h.fates))
}

func joinLines(s []string) string {
	var b bytes.Buffer
	for i, l := range s {
		if i > 0 {
			b.WriteString("\n  ")
		}
		b.WriteString(l)
	}
	return b.String()
}

// value is the content of record i of append n: anyone can make it again.
func value(n uint64, i int) []byte {
	r := rand.New(rand.NewPCG(n, uint64(i)))
	size := r.IntN(400)
	if r.IntN(40) == 0 {
		size = 5000 // more than a segment
	}
	b := make([]byte, 12+size)
	binary.BigEndian.PutUint64(b, n)
	binary.BigEndian.PutUint32(b[8:], uint32(i))
	for j := 12; j < len(b); j++ {
		b[j] = byte(r.Uint32())
	}
	return b
}

// stamp is the time of the records of append n: ten years to and fro, as from devices
// without a clock. No order may come of it.
func stamp(n uint64) int64 {
	return 1_780_000_000_000 + rand.New(rand.NewPCG(n, 77)).Int64N(2*tenYears) - tenYears
}

const tenYears = 10 * 365 * 24 * 3600 * 1000 // in ms

// wild is a clock that jumps by years with each look at it.
func wild() func() time.Time {
	var looks atomic.Uint64
	return func() time.Time { return time.UnixMilli(stamp(1<<40 + looks.Add(1))) }
}

func partName(topic string, index int) string { return fmt.Sprintf("%s/%d", topic, index) }

func (h *history) part(name string) *storage.Partition {
	dir, idx := filepath.Split(name)
	t, ok := h.s.Topic(filepath.Clean(dir))
	if !ok {
		return nil
	}
	return t.Partition(int(idx[0] - '0'))
}

// start takes over the disk of this generation and opens the store. It returns false when
// the power went off on the way.
func (h *history) start(plan func(*storagetest.CrashFS)) (bool, error) {
	fs, err := storagetest.NewCrashFS(h.dir())
	if err != nil {
		return false, err
	}
	h.fs = fs
	if plan != nil {
		plan(fs)
	}
	s, err := storage.Open(config(h.dir(), fs, h.r))
	if off, _, _ := fs.Off(); err != nil && off && errors.Is(err, storagetest.ErrPowerCut) {
		return false, nil
	}
	if err != nil {
		return false, h.fail("open: %v", err)
	}
	h.s = s
	return true, nil
}

// next moves to the disk that the power cut left.
func (h *history) next(cut string) error {
	_, note, err := h.fs.Off()
	if err != nil {
		return err
	}
	h.fates = append(h.fates, fmt.Sprintf("%d, %s: %s", h.gen, cut, note))
	if err := h.fs.Close(); err != nil {
		return err
	}
	old := h.dir()
	h.gen++
	return os.RemoveAll(old)
}

func (h *history) image() string { return filepath.Join(h.base, fmt.Sprintf("gen-%d", h.gen+1)) }

// newSub makes an append over random partitions of one class.
func (h *history) newSub(class string) (*sub, *storage.Append, error) {
	names := map[string][]string{}
	for topic, n := range h.topics {
		t, ok := h.s.Topic(topic)
		if !ok {
			return nil, nil, h.fail("topic %s was created and is gone", topic)
		}
		for i := range n {
			c := t.Config().Class
			names[c] = append(names[c], partName(topic, i))
		}
	}
	sort.Strings(names[class])
	u := &sub{n: uint64(len(h.subs) + 1), class: class}
	a := h.s.NewAppend(class)
	for i := range 1 + h.r.IntN(6) {
		name := names[class][h.r.IntN(len(names[class]))]
		if err := a.Record(h.part(name), stamp(u.n), []byte(name), value(u.n, i), nil); err != nil {
			return nil, nil, h.fail("record: %v", err)
		}
		u.parts = append(u.parts, name)
	}
	num := binary.BigEndian.AppendUint64(nil, u.n)
	a.Set(storage.KindMeta, class+".last", num)
	a.Fold(storage.KindWindow, class+".all", num)
	h.mu.Lock()
	h.subs = append(h.subs, u)
	h.mu.Unlock()
	return u, a, nil
}

// done notes the outcome of an append. It runs on the committer.
func (h *history) done(u *sub, a *storage.Append, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	u.err = err
	if err != nil {
		return
	}
	u.acked = true
	for i := range u.parts {
		u.base = append(u.base, a.Base(i))
	}
}

func (h *history) off() bool { off, _, _ := h.fs.Off(); return off }

// work does n random things, or fewer when the power goes.
func (h *history) work(n int) error {
	for i, topic := range []string{"a", "b", "c"} {
		if h.topics[topic] > 0 {
			continue
		}
		if err := h.createTopic(topic, 1+i%2, classes[i/2]); err != nil || h.topics[topic] == 0 {
			return err
		}
	}
	for range n {
		h.quiet()
		if h.off() {
			return nil
		}
		switch k := h.r.IntN(100); {
		case k < 50:
			if err := h.burst(1); err != nil {
				return err
			}
		case k < 85:
			if err := h.burst(2 + h.r.IntN(5)); err != nil {
				return err
			}
		case k < 92:
			if err := h.setStart(); err != nil {
				return err
			}
		case k < 97:
			if err := h.s.Retain(); err != nil && !h.off() && !h.faulty {
				return h.fail("retain: %v", err)
			}
		default:
			name := fmt.Sprintf("t%d", len(h.topics)+len(h.maybe))
			if err := h.createTopic(name, 1, classes[h.r.IntN(2)]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *history) createTopic(name string, parts int, class string) error {
	_, err := h.s.CreateTopic(name, storage.TopicConfig{Partitions: parts, Class: class})
	switch {
	case err == nil || errors.Is(err, storage.ErrExists):
		h.topics[name] = parts
		delete(h.maybe, name)
	case h.off() || h.faulty:
		h.maybe[name] = parts
	default:
		return h.fail("create topic: %v", err)
	}
	return nil
}

func (h *history) burst(n int) error {
	var wg sync.WaitGroup
	late := func() error { return h.fail("the store never answered an append") }
	submit := func(class string, then func()) error {
		u, a, err := h.newSub(class)
		if err != nil {
			return err
		}
		wg.Add(1)
		h.s.Submit(a, func(a *storage.Append, err error) { h.done(u, a, err); then(); wg.Done() })
		return nil
	}
	if h.free {
		for range n {
			if err := submit(h.class(), func() {}); err != nil {
				return err
			}
		}
		return waitGroup(&wg, late)
	}
	// One class, so that one committer works at a time. Each group is submitted while the
	// commit of the one before is being flushed: what shares a commit is the seed's choice.
	class, groups := h.class(), []int{1}
	if k := n - 1; k > 1 && h.r.IntN(2) == 0 {
		first := 1 + h.r.IntN(k-1)
		groups = append(groups, first, k-first)
	} else if k > 0 {
		groups = append(groups, k)
	}
	gate := make(chan chan struct{})
	ended := make(chan struct{})
	defer close(ended)
	defer h.fs.Gate(storagetest.Sync, nil)
	if len(groups) > 1 {
		h.fs.Gate(storagetest.Sync, gate)
	}
	var answered chan struct{}
	for i, k := range groups {
		var held chan struct{}
		if i > 0 {
			select {
			case held = <-gate:
			case <-answered: // before the flush: it failed
				go func() {
					select {
					case late := <-gate:
						close(late)
					case <-ended:
					}
				}()
			case <-time.After(20 * time.Second):
				return late()
			}
		}
		was := make(chan struct{})
		answered = was
		for j := range k {
			err := submit(class, func() {
				if j > 0 {
					return
				}
				if i+2 < len(groups) { // before the committer takes the next group
					h.fs.Gate(storagetest.Sync, gate)
				}
				close(was)
			})
			if err != nil {
				return err
			}
		}
		if held != nil {
			close(held)
		}
	}
	return waitGroup(&wg, late)
}

// quiet waits until the committers have nothing left to do: after its answer a commit may
// be followed by one of the store's own. To settle a loss that is not there is a round
// trip.
func (h *history) quiet() {
	for _, class := range classes {
		for _, t := range h.s.Topics() {
			if t.Config().Class == class {
				_ = h.s.SettleLoss(context.Background(), storage.Loss{Partition: t.Partition(0).ID(), From: -1})
				break
			}
		}
	}
}

func (h *history) class() string { return classes[h.r.IntN(len(classes))] }

// waitGroup waits with a deadline: a store that never answers is a failure, not a hang.
func waitGroup(wg *sync.WaitGroup, late func() error) error {
	ch := make(chan struct{})
	go func() { wg.Wait(); close(ch) }()
	select {
	case <-ch:
		return nil
	case <-time.After(20 * time.Second):
		return late()
	}
}

func (h *history) setStart() error {
	var names []string
	for topic, n := range h.topics {
		for i := range n {
			names = append(names, partName(topic, i))
		}
	}
	if len(names) == 0 {
		return nil
	}
	sort.Strings(names)
	name := names[h.r.IntN(len(names))]
	p := h.part(name)
	to := p.Start() + h.r.Int64N(p.HighWatermark()-p.Start()+1)
	h.starts[name] = max(h.starts[name], to)
	if err := p.SetStart(to); err == nil {
		h.sure[name] = max(h.sure[name], to)
	} else if !h.off() && !h.faulty {
		return h.fail("set start: %v", err)
	}
	return nil
}

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

// end closes the store, whatever the power does.
func (h *history) end() error {
	if h.s == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- h.s.Close() }()
	select {
	case err := <-done:
		h.s = nil
		if err != nil && !h.off() && !h.faulty {
			return h.fail("close: %v", err)
		}
	case <-time.After(20 * time.Second):
		return h.fail("Close does not return")
	}
	return nil
}

// commit is one append and its answer.
func (h *history) commit() (*sub, error) {
	u, a, err := h.newSub(h.class())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = h.s.Commit(ctx, a)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, h.fail("the store never answered an append")
	}
	h.done(u, a, err)
	return u, nil
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
