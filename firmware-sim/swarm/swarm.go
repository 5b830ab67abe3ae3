// Package swarm is many nodes in one process, for the load that thousands of sites put on
// a hub: each has its own certificate, socket and link (the product's own link.Client),
// and a log in memory of a few records. It is a load generator, not a node: nothing it
// sends was ever on a disk.
package swarm

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/link"
	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// Config of a swarm.
type Config struct {
	Hub      string // host:port
	CA       *pki.CA
	Roots    *x509.CertPool
	Nodes    int
	Prefix   string        // of node ids: PREFIX-00000
	Topic    string        // of every node
	Interval time.Duration // a record of each node; 0 = one at the start and then silence
	Backlog  int           // records that each node has at the start, in whole batches of 50; then Interval means nothing
	Rate     float64       // connections begun a second; 0 = 500
	Seed     uint64
}

// Stats of a swarm.
type Stats struct {
	Nodes      int     `json:"nodes"`
	Started    int     `json:"started"`
	Connected  int     `json:"connected"`
	Reconnects int64   `json:"reconnects"`
	Records    int64   `json:"records"` // made
	Acked      int64   `json:"acked"`   // durable at the hub
	OldestAck  float64 `json:"slowest_ack_seconds"`
}

// Swarm is running nodes.
type Swarm struct {
	cfg     Config
	started atomic.Int64

	readings [][]byte // of the backlogs

	mu    sync.Mutex // guards nodes
	nodes []*node
}

// New makes a swarm; Run starts it.
func New(c Config) *Swarm {
	if c.Rate <= 0 {
		c.Rate = 500
	}
	return &Swarm{cfg: c}
}

// Run connects the nodes at the given rate and keeps them until ctx ends. A node that
// cannot be made ends all.
func (s *Swarm) Run(ctx context.Context) error {
	if s.cfg.Backlog > 0 {
		var err error
		if s.readings, err = Readings(s.cfg.Seed); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop() // before the wait
	gap := time.Duration(float64(time.Second) / s.cfg.Rate)
	tick := time.NewTicker(max(gap, time.Millisecond))
	defer tick.Stop()
	begin := time.Now()
	for i := 0; i < s.cfg.Nodes; {
		for due := int(time.Since(begin)/gap) + 1; i < min(due, s.cfg.Nodes); i++ {
			n, err := s.node(i)
			if err != nil {
				return err
			}
			s.mu.Lock()
			s.nodes = append(s.nodes, n)
			s.mu.Unlock()
			s.started.Add(1)
			wg.Go(func() { n.client.Run(ctx) })
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	if s.cfg.Interval > 0 {
		wg.Go(func() { s.produce(ctx) })
	}
	<-ctx.Done()
	return ctx.Err()
}

// produce makes records, spread evenly over the interval.
func (s *Swarm) produce(ctx context.Context) {
	step := 100 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	owed, next := 0.0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for owed += float64(len(s.nodes)) * float64(step) / float64(s.cfg.Interval); owed >= 1; owed-- {
			s.nodes[next%len(s.nodes)].log.add()
			next++
		}
	}
}

// Stats counts.
func (s *Swarm) Stats() Stats {
	st := Stats{Nodes: s.cfg.Nodes, Started: int(s.started.Load())}
	s.mu.Lock()
	nodes := slices.Clone(s.nodes)
	s.mu.Unlock()
	now := time.Now()
	for _, n := range nodes {
		c := n.client.State()
		if c.Connected {
			st.Connected++
		}
		st.Reconnects += int64(c.Reconnects)
		made, acked, waiting := n.log.counts()
		st.Records, st.Acked = st.Records+made, st.Acked+acked
		if !waiting.IsZero() {
			st.OldestAck = max(st.OldestAck, now.Sub(waiting).Seconds())
		}
	}
	return st
}

type node struct {
	log    log
	client *link.Client
}

func (s *Swarm) node(i int) (*node, error) {
	id := fmt.Sprintf("%s-%05d", s.cfg.Prefix, i)
	p, err := s.cfg.CA.Issue(rand.Reader, pki.RoleNode, id, nil, time.Now(), 30*24*time.Hour)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, err
	}
	m := newLog(s.cfg.Topic, id, s.cfg.Seed)
	var l log = m
	if s.readings != nil {
		l = &backlog{memLog: m, of: s.readings, total: int64(s.cfg.Backlog+perBatch-1) / perBatch * perBatch, begin: time.Now()}
	}
	l.add()
	c, err := link.NewClient(link.ClientConfig{NodeID: id, Hubs: []string{s.cfg.Hub}, Source: l, Software: "firmware-sim swarm",
		TLS:        &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: s.cfg.Roots, ServerName: "localhost"},
		Rand:       mrand.New(mrand.NewPCG(s.cfg.Seed, uint64(i))),
		PacketConn: func() (net.PacketConn, error) { return net.ListenUDP("udp", &net.UDPAddr{IP: site(i)}) },
		Status: func() wire.Status {
			made, _, _ := l.counts()
			return wire.Status{Devices: 10, Records: made}
		},
	})
	return &node{l, c}, err
}

// site is the address of a node, which one other shares: what a hub allows to an address is less than a fleet needs.
func site(i int) net.IP { return net.IPv4(127, 1+byte(i>>16), byte(i>>8), byte(i)|1) }

// memLog is a node's log: single records of one partition.
type memLog struct {
	topic   string
	epoch   wire.EpochInfo
	changed chan struct{}
	next    atomic.Int64

	mu      sync.Mutex // guards the following
	start   int64
	batches [][]byte // of the offsets from start on
	made    []time.Time
}

func newLog(topic, id string, seed uint64) *memLog {
	l := &memLog{topic: topic, changed: make(chan struct{}, 1)}
	copy(l.epoch.ID[:], id)
	binary.BigEndian.PutUint32(l.epoch.ID[12:], uint32(seed))
	l.epoch.Number = 1
	return l
}

func (l *memLog) add() {
	now := time.Now()
	off := l.next.Load()
	var b record.Builder
	b.Reset(nil)
	b.Add(now.UnixMilli(), []byte("wtg-1"), fmt.Appendf(nil, `{"ts":%d,"n":%d,"wind_ms":%.1f,"power_kw":%d,"state":"run"}`, now.UnixMilli(), off, 5+float64(off%70)/10, off*37%2000), nil)
	l.mu.Lock()
	l.batches, l.made = append(l.batches, b.Finish(off, 1)), append(l.made, now)
	l.next.Store(off + 1)
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func (l *memLog) counts() (made, acked int64, waiting time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.made) > 0 {
		waiting = l.made[0]
	}
	return l.next.Load(), l.start, waiting
}

func (l *memLog) Inventory() wire.Inventory {
	l.mu.Lock()
	defer l.mu.Unlock()
	return wire.Inventory{Epochs: []wire.EpochInfo{l.epoch}, Partitions: []wire.PartitionInfo{{ID: 1, Topic: l.topic, Start: l.start, Next: l.next.Load()}}}
}

func (l *memLog) Generation() uint64 { return 1 }

func (l *memLog) Bounds(string, int) (start, next int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.start, l.next.Load()
}

func (l *memLog) Read(dst []byte, _ string, _ int, from int64, maxBytes int) ([]byte, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from < l.start {
		return dst, from, link.ErrGone
	}
	for n := 0; from-l.start < int64(len(l.batches)) && (n == 0 || n < maxBytes); from++ {
		b := l.batches[from-l.start]
		dst, n = append(dst, b...), n+len(b)
	}
	return dst, from, nil
}

func (l *memLog) Changed() <-chan struct{} { return l.changed }

func (l *memLog) Acked(_ string, _ int, _ wire.ID, held uplink.RangeSet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.batches) > 0 && held.Contains(l.start) {
		l.start++
		l.batches, l.made = l.batches[1:], l.made[1:]
	}
}

func (l *memLog) Gaps() []link.GapProposal { return nil }
