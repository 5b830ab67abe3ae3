package link_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// memSource is a node's log in memory.
type memSource struct {
	mu      sync.Mutex
	epochs  []wire.EpochInfo
	parts   []*memPart
	gen     uint64
	changed chan struct{}
	gaps    []link.GapProposal
	readErr error
	sink    *memSink      // acks are compared with what it holds
	ackCame chan struct{} // capacity 1: something was acknowledged
	node    string
}

type memPart struct {
	id      uint32
	topic   string
	index   int
	start   int64
	next    int64
	mode    wire.Mode
	batches []memBatch
	acked   map[wire.ID]*uplink.RangeSet
}

type memBatch struct {
	base, next int64
	b          []byte
}

func newSource(epoch byte, topics ...string) *memSource {
	s := &memSource{changed: make(chan struct{}, 1), ackCame: make(chan struct{}, 1), epochs: []wire.EpochInfo{{ID: wire.ID{epoch}, Number: 1}}}
	for _, t := range topics {
		s.addTopic(t)
	}
	return s
}

func (s *memSource) addTopic(t string) {
	s.mu.Lock()
	s.parts = append(s.parts, &memPart{id: uint32(len(s.parts) + 1), topic: t, acked: map[wire.ID]*uplink.RangeSet{}})
	s.gen++
	s.mu.Unlock()
	s.signal()
}

func (s *memSource) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// put appends a durable batch of n records.
func (s *memSource) put(part, n, size int) {
	s.mu.Lock()
	p := s.parts[part]
	payload := make([]byte, n*size)
	for i := range payload {
		payload[i] = byte('a' + (i/7+int(p.next))%13)
	}
	p.batches = append(p.batches, memBatch{p.next, p.next + int64(n), linktest.AppendBatch(nil, p.next, n, time.Now().UnixMilli(), payload)})
	p.next += int64(n)
	s.mu.Unlock()
	s.signal()
}

// trim forgets what the hub has, as a node that keeps nothing longer does.
func (s *memSource) trim() {
	for i := range s.parts {
		acked := s.ackedTo(i)
		s.mu.Lock()
		p, k := s.parts[i], 0
		for k < len(p.batches) && p.batches[k].next <= acked {
			k++
		}
		p.batches = slices.Clone(p.batches[k:])
		p.start = max(p.start, acked)
		s.mu.Unlock()
	}
}

// evict frees everything below off and says so.
func (s *memSource) evict(part int, off int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[part]
	for len(p.batches) > 0 && p.batches[0].base < off {
		s.gaps = append(s.gaps, link.GapProposal{Topic: p.topic, Partition: p.index, Epoch: s.epochs[len(s.epochs)-1].ID,
			Gap: wire.Gap{Ranges: uplink.RangeSet{{From: p.batches[0].base, To: p.batches[0].next}}, Reason: wire.GapEvicted}})
		p.start = p.batches[0].next
		p.batches = p.batches[1:]
	}
}

func (s *memSource) Inventory() wire.Inventory {
	s.mu.Lock()
	defer s.mu.Unlock()
	inv := wire.Inventory{Epochs: slices.Clone(s.epochs)}
	for _, p := range s.parts {
		inv.Partitions = append(inv.Partitions, wire.PartitionInfo{ID: p.id, Topic: p.topic, Partition: p.index, Start: p.start, Next: p.next, Mode: p.mode})
	}
	return inv
}

func (s *memSource) Generation() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gen
}

func (s *memSource) find(topic string, index int) *memPart {
	for _, p := range s.parts {
		if p.topic == topic && p.index == index {
			return p
		}
	}
	return nil
}

func (s *memSource) Bounds(topic string, index int) (int64, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.find(topic, index)
	return p.start, p.next
}

func (s *memSource) Read(dst []byte, topic string, index int, from int64, maxBytes int) ([]byte, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readErr != nil {
		return dst, from, s.readErr
	}
	p := s.find(topic, index)
	if from < p.start {
		return dst, from, link.ErrGone
	}
	i, _ := slices.BinarySearchFunc(p.batches, from, func(b memBatch, o int64) int {
		if b.next <= o {
			return -1
		}
		return 1
	})
	n, next := 0, from
	for ; i < len(p.batches); i++ {
		b := &p.batches[i]
		if n > 0 && (n+len(b.b) > maxBytes || b.base != next) {
			break
		}
		dst = append(dst, b.b...)
		n, next = n+len(b.b), b.next
	}
	return dst, next, nil
}

func (s *memSource) Changed() <-chan struct{} { return s.changed }

func (s *memSource) Acked(topic string, index int, epoch wire.ID, held uplink.RangeSet) {
	if s.sink != nil {
		s.sink.durable(originKey{s.node, epoch, topic, index}, held)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.find(topic, index)
	if p.acked[epoch] == nil {
		p.acked[epoch] = new(uplink.RangeSet)
	}
	p.acked[epoch].AddSet(held)
	select {
	case s.ackCame <- struct{}{}:
	default:
	}
	s.gaps = slices.DeleteFunc(s.gaps, func(g link.GapProposal) bool {
		r := g.Gap.Ranges[0]
		return g.Topic == topic && g.Partition == index && g.Epoch == epoch && p.acked[epoch].Covers(r.From, r.To)
	})
}

func (s *memSource) ackedTo(part int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.parts[part]
	a := p.acked[s.epochs[len(s.epochs)-1].ID]
	if a == nil || len(*a) == 0 || (*a)[0].From != 0 {
		return 0
	}
	return (*a)[0].To
}

func (s *memSource) Gaps() []link.GapProposal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.gaps)
}

// memSink is a hub's store in memory: what is in stored is durable and survives a
// restart of the server. It writes down every breach of "once and in order".
type memSink struct {
	mu       sync.Mutex
	id       wire.ID
	stored   map[originKey]*memLog
	errs     []string
	latency  time.Duration // from Append to durable
	hold     chan struct{} // while not nil, Append blocks until it is closed or ctx ends
	waiting  int64         // bytes appended and not durable
	byNode   map[string]int64
	peak     int64
	refuse   error
	failing  error              // Append fails with it
	broken   map[originKey]bool // an Append failed, and no Hello since
	forks    []wire.Fork
	statuses int
	gaps     []wire.Gap
	sessions int
	helloAt  []time.Time
	stale    bool // Preview knows nothing
	noTimes  bool // do not keep when things were stored
	appended func(o wire.Origin, n int64)
	tail     chan struct{} // closed when the append before is done: keeps done in order
}

type originKey struct {
	node  string
	epoch wire.ID
	topic string
	index int
}

type memLog struct {
	held    uplink.RangeSet
	records int64
	next    int64
	last    *wire.Held
	lanes   map[wire.Lane]int64
	times   []time.Time // of each append
}

func newSink() *memSink {
	return &memSink{id: wire.ID{0xcc}, stored: map[originKey]*memLog{}, byNode: map[string]int64{}, broken: map[originKey]bool{}}
}

func (s *memSink) Identity() (wire.ID, int32) { return s.id, 1 }

func (s *memSink) plan(node string, inv wire.Inventory) link.Plan {
	var p link.Plan
	for k, l := range s.stored {
		if k.node == node {
			p.Progress = append(p.Progress, uplink.Progress{Epoch: k.epoch, Topic: k.topic, Partition: k.index, Held: l.held.Clone(), Last: l.last})
		}
	}
	return p
}

func (s *memSink) Hello(ctx context.Context, node string, h wire.Hello) (link.Plan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return link.Plan{}, s.refuse
	}
	if n := s.byNode[node]; n != 0 {
		s.errs = append(s.errs, fmt.Sprintf("Hello while %d bytes of the session before are under way", n))
	}
	s.sessions++
	s.helloAt = append(s.helloAt, time.Now())
	for k := range s.broken {
		if k.node == node {
			delete(s.broken, k)
		}
	}
	return s.plan(node, h.Inventory), nil
}

func (s *memSink) Inventory(ctx context.Context, node string, inv wire.Inventory) (link.Plan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan(node, inv), nil
}

func (s *memSink) log(o wire.Origin) *memLog {
	k := originKey{o.Node, o.Epoch, o.Topic, o.Partition}
	l := s.stored[k]
	if l == nil {
		l = &memLog{lanes: map[wire.Lane]int64{}}
		s.stored[k] = l
	}
	return l
}

func (s *memSink) Append(ctx context.Context, o wire.Origin, batches []byte, done func(uplink.RangeSet, error)) {
	s.mu.Lock()
	hold, latency := s.hold, s.latency
	s.waiting += int64(len(batches))
	s.byNode[o.Node] += int64(len(batches))
	s.peak = max(s.peak, s.waiting)
	before, mine := s.tail, make(chan struct{})
	s.tail = mine
	s.mu.Unlock()
	finish := func(err error) {
		defer close(mine)
		if before != nil {
			<-before
		}
		s.mu.Lock()
		s.waiting -= int64(len(batches))
		s.byNode[o.Node] -= int64(len(batches))
		var held uplink.RangeSet
		if err == nil {
			err = s.failing
		}
		k := originKey{o.Node, o.Epoch, o.Topic, o.Partition}
		if err == nil && s.broken[k] {
			err = errors.New("the append before failed")
		}
		s.broken[k] = err != nil
		if err == nil {
			held = s.store(o, batches)
		}
		s.mu.Unlock()
		done(held, err)
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			finish(ctx.Err())
			return
		}
	}
	if latency > 0 {
		time.AfterFunc(latency, func() { finish(nil) })
		return
	}
	finish(nil)
}

// fail makes every Append fail with err until it is nil again.
func (s *memSink) fail(err error) {
	s.mu.Lock()
	s.failing = err
	s.mu.Unlock()
}

func (s *memSink) store(o wire.Origin, batches []byte) uplink.RangeSet {
	l := s.log(o)
	var held uplink.RangeSet
	for rest := batches; len(rest) > 0; {
		b, more, err := wire.NextBatch(rest)
		if err == nil {
			err = b.Verify()
		}
		if err != nil {
			s.errs = append(s.errs, fmt.Sprintf("%s: %v", o, err))
			break
		}
		rest = more
		if len(l.held.Missing(b.Base, b.Next)) == 0 || !l.held.Missing(b.Base, b.Next).Equal(uplink.RangeSet{{From: b.Base, To: b.Next}}) {
			s.errs = append(s.errs, fmt.Sprintf("%s: [%d,%d) came twice, held %s", o, b.Base, b.Next, l.held))
		}
		if o.Lane != wire.LaneBackfill && b.Base < l.next {
			s.errs = append(s.errs, fmt.Sprintf("%s: offset %d after %d", o, b.Base, l.next))
		}
		if miss := l.held.Missing(0, b.Base); o.Lane != wire.LaneBackfill && s.inOrder(o) && len(miss) > 0 {
			s.errs = append(s.errs, fmt.Sprintf("%s: offset %d while %s is missing", o, b.Base, miss))
		}
		l.held.Add(b.Base, b.Next)
		held.Add(b.Base, b.Next)
		l.records += int64(b.Records)
		l.lanes[o.Lane] += int64(b.Records)
		l.next = max(l.next, b.Next)
		l.last = &wire.Held{Offset: b.Base, CRC: b.CRC}
	}
	if !s.noTimes {
		l.times = append(l.times, time.Now())
	}
	if s.appended != nil {
		s.appended(o, held.Count())
	}
	return held
}

func (s *memSink) inOrder(o wire.Origin) bool {
	return o.Topic != "live-first" && o.Topic != "on-demand" && o.Topic != "forked"
}

func (s *memSink) Declare(ctx context.Context, o wire.Origin, gaps []wire.Gap) (uplink.RangeSet, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.log(o)
	var out uplink.RangeSet
	for _, g := range gaps {
		lost := g.Ranges.Clone()
		lost.RemoveSet(l.held)
		if len(lost) > 0 {
			g.Ranges = lost
			s.gaps = append(s.gaps, g)
		}
		l.held.AddSet(lost)
		out.AddSet(g.Ranges)
	}
	return out, nil
}

func (s *memSink) Fork(node string, o wire.Origin, f wire.Fork) {
	s.mu.Lock()
	s.forks = append(s.forks, f)
	s.mu.Unlock()
}

func (s *memSink) Status(node string, st wire.Status) {
	s.mu.Lock()
	s.statuses++
	s.mu.Unlock()
}

func (s *memSink) Connected(string, link.SessionInfo)           {}
func (s *memSink) Disconnected(string, link.SessionInfo, error) {}

// durable notes an ack of what is not durable.
func (s *memSink) durable(k originKey, held uplink.RangeSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range held {
		if l := s.stored[k]; l == nil || !l.held.Covers(r.From, r.To) {
			s.errs = append(s.errs, fmt.Sprintf("%v: %s was acked and is not durable", k, r))
		}
	}
}

func (s *memSink) records(node, topic string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for k, l := range s.stored {
		if k.node == node && k.topic == topic {
			n += l.records
		}
	}
	return n
}

func (s *memSink) check(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, e := range s.errs {
		if i == 5 {
			t.Errorf("and %d more", len(s.errs)-5)
			break
		}
		t.Error(e)
	}
}

// world is a hub and nodes on one simulated network.
type world struct {
	t    testing.TB
	r    *linktest.Router
	ca   *pki.CA
	pool *x509.CertPool
	sink *memSink
	port atomic.Int64
	srv  *link.Server
	cl   []*link.Client
}

func newWorld(t testing.TB, p linktest.Path) *world { return newSeededWorld(t, p, 1) }

// newSeededWorld is a world with losses of its own.
func newSeededWorld(t testing.TB, p linktest.Path, seed uint64) *world {
	w := &world{t: t, r: linktest.NewRouter(mrand.New(mrand.NewPCG(seed, 2))), sink: newSink()}
	w.r.Default(p)
	w.ca, w.pool = newCA(t)
	return w
}

func newCA(t testing.TB) (*pki.CA, *x509.CertPool) {
	ca, pair, err := pki.NewCA(rand.Reader, "test", time.Now(), 24*365*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pair.Cert)
	return ca, pool
}

func (w *world) cert(ca *pki.CA, role pki.Role, name string) tls.Certificate {
	pair, err := ca.Issue(rand.Reader, role, name, []string{"hub.test", "127.0.0.1"}, time.Now(), 24*365*time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

var resetKey = [32]byte{1, 2, 3}

// runHub starts a server; stop ends it and waits.
func (w *world) runHub(pc net.PacketConn, change func(*link.ServerConfig)) (s *link.Server, stop func()) {
	cfg := link.ServerConfig{PacketConn: pc, Sink: w.sink, StatelessResetKey: &resetKey, Logger: testLogger("hub"),
		TLS: &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleHub, "hub")}, ClientCAs: w.pool, Time: time.Now}}
	if change != nil {
		change(&cfg)
	}
	s, err := link.NewServer(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.srv = s
	return s, w.run("hub", s.Run)
}

func (w *world) run(name string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); !errors.Is(err, context.Canceled) {
			w.t.Errorf("%s ended: %v", name, err)
		}
	}()
	return func() { cancel(); <-done }
}

func testLogger(name string) *slog.Logger {
	out := io.Discard
	if os.Getenv("UPLINK_TEST_LOG") != "" {
		out = os.Stderr
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", name)
}

const hubAddr = "10.0.0.1:7443"

// hub starts a server on the simulated network.
func (w *world) hub(change func(*link.ServerConfig)) (*link.Server, func()) {
	return w.runHub(w.r.HubConn(hubAddr), change)
}

// node starts a client on the simulated network, at ip.
func (w *world) node(id, ip string, src link.Source, change func(*link.ClientConfig)) (*link.Client, func()) {
	cfg := link.ClientConfig{NodeID: id, Hubs: []string{hubAddr}, Source: src, Logger: testLogger(id),
		TLS:  &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleNode, id)}, RootCAs: w.pool, ServerName: "hub.test", Time: time.Now},
		Rand: mrand.New(mrand.NewPCG(7, uint64(len(w.cl)))),
		PacketConn: func() (net.PacketConn, error) {
			return w.r.NodeConn(fmt.Sprintf("%s:%d", ip, 5000+w.port.Add(1))), nil
		}}
	if m, ok := src.(*memSource); ok {
		m.mu.Lock()
		m.sink, m.node = w.sink, id
		m.mu.Unlock()
	}
	if change != nil {
		change(&cfg)
	}
	c, err := link.NewClient(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cl = append(w.cl, c)
	return c, w.run(id, c.Run)
}
