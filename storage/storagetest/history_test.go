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
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/storage"
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
	seed := [32]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}
	cfg := storage.Config{
		Dir: dir, FS: fs, NodeID: "n1", RetentionInterval: -1, Now: wild(),
		Folds: map[storage.StateKind]storage.FoldFunc{storage.KindWindow: countFold},
		Rand:  rand.NewChaCha8(seed),
	}
	for _, c := range classes {
		cfg.Classes = append(cfg.Classes, storage.ClassConfig{Name: c, SegmentBytes: 4 << 10, MinFreeBytes: 1, Pack: seed[len(cfg.Classes)]%2 == 0})
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
