package scenario

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tailrace/edge"
	"tailrace/firmware-sim/ledger"
	"tailrace/storage"
	"tailrace/storage/storagetest"
	"tailrace/uplink/hub"
	"tailrace/uplink/pki"
)

const (
	nodeID = "node-1"
	stream = "telemetry" // where the node routes everything
)

var hubAddr = &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1).To4(), Port: 7443}

// world is a site, a hub and the link between them, in one bubble of simulated time.
// The daemons in it are the production ones, with disk, socket and listener passed in.
type world struct {
	seed  uint64
	dir   string
	certs string
	rng   *mrand.Rand
	log   slog.Handler
	start time.Time

	wan  *wan
	site memNet
	book *ledger.Book

	node, hub *machine
	tuneNode  func(*edge.Config) // nil, or changes the configuration of each start
	tuneHub   func(*hub.Config)

	features string     // that the plan has in any case, see withFeatures
	plan     plan       // of a history
	before   *given     // what the hub gave out before its disk was lost, nil when it was not
	clock    wallClock  // of the node
	bench    memNet     // the site of a copy of the node's card
	troubles []interval // of the node; guarded by mu

	mu     sync.Mutex
	events []string // guarded by mu
	ports  int      // guarded by mu
	ghosts sync.WaitGroup
}

// machine is a computer with one disk that runs one daemon, and starts it again whenever
// it ends.
type machine struct {
	w    *world
	name string
	real bool // on the operating system's files, without CrashFS
	run  func(ctx context.Context, dir string, fs storage.FS, life *life) error

	mu   sync.Mutex
	gen  int // of its disk
	ons  int
	life *life // nil while the power is off
}

// life is the time between two power cuts of a machine.
type life struct {
	dir    string
	fs     *storagetest.CrashFS // nil on real files
	cancel context.CancelFunc
	done   chan struct{} // the daemon and its restarts have ended

	mu       sync.Mutex
	dead     bool
	boot     string // names it
	born     time.Time
	sockets  []*socket
	listener *memListener
	store    *storage.Store // of the daemon that runs now
	central  *hub.Hub       // it, when it is a hub
	edge     *edge.Node     // it, when it is a node
	ends     []string       // of daemons that stopped by themselves
}

func newWorld(seed uint64, dir, certs string) *world {
	w := &world{
		seed: seed, dir: dir, certs: certs, rng: mrand.New(mrand.NewPCG(seed, 4)), start: time.Now(),
		features: *withFeatures, wan: newWAN(hubAddr.String(), seed), book: ledger.New(), log: slog.DiscardHandler,
	}
	w.site.delay = time.Duration(w.rng.IntN(30)) * time.Millisecond
	w.node = &machine{w: w, name: "node", run: w.runNodeAt(&w.site)}
	w.hub = &machine{w: w, name: "hub", run: w.runHub}
	return w
}

// say adds a line to the history of this world.
func (w *world) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%10.3fs  ", time.Since(w.start).Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) history() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.events, "\n")
}

// dir is where the machine's disk is, of this time or the next.
func (m *machine) dir() string { return filepath.Join(m.w.dir, fmt.Sprintf("%s-%d", m.name, m.gen)) }

// on switches the power on.
func (m *machine) on() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &life{dir: m.dir(), done: make(chan struct{}), boot: fmt.Sprintf("%s, power on %d", m.name, m.ons), born: time.Now()}
	m.ons++
	var fsys storage.FS
	if !m.real {
		fs, err := storagetest.NewCrashFS(l.dir)
		if err != nil {
			return err
		}
		l.fs, fsys = fs, fs
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	m.life = l
	m.w.ghosts.Add(1)
	go func() {
		defer m.w.ghosts.Done()
		defer close(l.done)
		for ctx.Err() == nil { // as an init system does
			err := m.run(ctx, l.dir, fsys, l)
			l.ended()
			if ctx.Err() != nil {
				return
			}
			m.w.say("%s ended by itself: %v", m.name, err)
			l.mu.Lock()
			l.ends = append(l.ends, fmt.Sprint(err))
			l.mu.Unlock()
			time.Sleep(time.Second)
		}
	}()
	return nil
}

// crash cuts the power: nothing leaves the machine any more, and its disk is left in a
// state chosen by seed. With at > 0 the power goes within the at-th change of the disk from
// now, before or after it takes effect, or at the end of the wait if there are fewer. It
// does not wait for the dead daemon's goroutines.
func (m *machine) crash(seed uint64, at int64, after bool) error {
	m.mu.Lock()
	l := m.life
	m.mu.Unlock()
	if l == nil {
		return nil
	}
	l.fs.OnCut(func() { l.die(seed) })
	dst := filepath.Join(m.w.dir, fmt.Sprintf("%s-%d", m.name, m.gen+1))
	if at > 0 {
		l.fs.CutAt(at, after, seed, dst)
		for i := 0; i < 400; i++ {
			if off, _, _ := l.fs.Off(); off {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	note, err := l.fs.Cut(seed, dst)
	if err != nil {
		return fmt.Errorf("power cut of the %s: %w", m.name, err)
	}
	m.mu.Lock()
	m.life = nil
	m.gen++
	m.mu.Unlock()
	m.w.say("power cut of the %s (change %d, after=%v): %s", m.name, at, after, note)
	l.cancel()
	go func() {
		<-l.done
		l.fs.Close()
		os.RemoveAll(l.dir)
	}()
	return nil
}

// die takes the machine off the network.
func (l *life) die(seed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	for _, s := range l.sockets {
		s.kill()
	}
	if l.listener != nil {
		r := mrand.New(mrand.NewPCG(seed, 5))
		l.listener.kill(func() bool { return r.IntN(2) == 0 })
	}
}

// ended closes what a daemon that ended has left open, as a kernel does: one that could not
// start has not closed the socket that it was given, and its peer's packets would wait there.
func (l *life) ended() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sockets {
		_ = s.Close()
	}
	l.sockets = nil
}

// off ends the daemon in order, as a shutdown does, and waits for it.
func (m *machine) off() *life {
	m.mu.Lock()
	l := m.life
	m.life = nil
	m.mu.Unlock()
	if l != nil {
		l.cancel()
		<-l.done
	}
	return l
}

// disk is the machine's file layer, nil while it is off.
func (m *machine) disk() *storagetest.CrashFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == nil {
		return nil
	}
	return m.life.fs
}

func (l *life) running(s *storage.Store) {
	l.mu.Lock()
	l.store = s
	l.mu.Unlock()
}

// store is that of the running daemon, nil when there is none.
func (m *machine) store() *storage.Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == nil {
		return nil
	}
	m.life.mu.Lock()
	defer m.life.mu.Unlock()
	return m.life.store
}

// central is the running hub, nil when there is none.
func (w *world) central() *hub.Hub {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.hub.life == nil {
		return nil
	}
	w.hub.life.mu.Lock()
	defer w.hub.life.mu.Unlock()
	return w.hub.life.central
}

// info is what the hub says of the node.
func (w *world) info() hub.NodeInfo {
	if h := w.central(); h != nil {
		for _, n := range h.Nodes() {
			if n.Node == nodeID {
				return n
			}
		}
	}
	return hub.NodeInfo{}
}

// completeTo is up to which offset of a stream the hub is complete.
func (w *world) completeTo(stream string) int64 {
	for _, t := range w.info().Topics {
		if t.Topic == stream {
			return t.CompleteTo
		}
	}
	return 0
}

// records is how many records of the devices the machine holds durably.
func (m *machine) records() int64 {
	s := m.store()
	if s == nil {
		return 0
	}
	t, ok := s.Topic(stream)
	if !ok {
		return 0
	}
	n := int64(0)
	for _, p := range t.Partitions() {
		n += p.HighWatermark()
	}
	return n
}

// packetConn makes a socket of this machine.
func (w *world) packetConn(l *life, addr *net.UDPAddr) net.PacketConn {
	s := w.wan.open(addr)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sockets = append(l.sockets, s)
	if l.dead {
		s.kill()
	}
	return s
}

// runNodeAt runs a node whose devices reach it over a site's network.
func (w *world) runNodeAt(site *memNet) func(context.Context, string, storage.FS, *life) error {
	return func(ctx context.Context, dir string, fs storage.FS, l *life) error {
		return w.runNode(ctx, dir, fs, l, site)
	}
}

func (w *world) runNode(ctx context.Context, dir string, fs storage.FS, l *life, site *memNet) error {
	zero, segment := time.Duration(0), edge.ByteSize(64<<10)
	if fs == nil {
		segment = 0 // the default
	}
	cfg := edge.Config{
		Node: nodeID,
		Storage: edge.StorageConfig{Dir: dir, Classes: []edge.ClassConfig{
			{Name: "main", WhenFull: "reject", SegmentSize: segment, CommitInterval: &zero, MinFree: 1},
		}},
		MQTT: edge.MQTTConfig{
			Listeners: []edge.ListenerConfig{{Address: "127.0.0.1:1883", Transport: "tcp"}},
			Auth:      edge.AuthConfig{AllowAnonymous: true},
		},
		Uplink: edge.UplinkConfig{Hubs: []string{hubAddr.String()}, TLS: &edge.ClientTLS{
			Cert: filepath.Join(w.certs, "node.crt"), Key: filepath.Join(w.certs, "node.key"), CA: filepath.Join(w.certs, "ca.crt"),
		}},
		HTTP:   edge.HTTPConfig{Address: "off"},
		FS:     fs,
		Logger: slog.New(w.log).With("who", "node"),
		Now:    w.clock.now, ClockSynced: w.clock.synced,
		KernelBoot: func() (string, time.Duration) { return l.boot, time.Since(l.born) },
		PacketConn: func() (net.PacketConn, error) {
			w.mu.Lock()
			w.ports++ // every socket from another address, as behind a mobile network
			addr := &net.UDPAddr{IP: net.IPv4(10, 1, byte(w.ports>>8), byte(w.ports)).To4(), Port: 1024 + w.ports%60000}
			w.mu.Unlock()
			return w.packetConn(l, addr), nil
		},
		Listen: func(network, address string) (net.Listener, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.dead {
				return nil, storagetest.ErrPowerCut
			}
			l.listener = site.listen()
			return l.listener, nil
		},
	}
	cfg.Default.Stream = stream
	if w.tuneNode != nil {
		w.tuneNode(&cfg)
	}
	n, err := edge.New(cfg)
	if err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-n.Ready():
			l.mu.Lock()
			l.edge = n
			l.mu.Unlock()
			l.running(n.Store())
		case <-ended:
		}
	}()
	return n.Run(ctx)
}

func (w *world) runHub(ctx context.Context, dir string, fs storage.FS, l *life) error {
	cfg := hub.Config{
		DataDir: dir,
		TLS:     hub.TLSConfig{Cert: filepath.Join(w.certs, "hub.crt"), Key: filepath.Join(w.certs, "hub.key"), CA: filepath.Join(w.certs, "ca.crt")},
		HTTP:    hub.HTTPConfig{Listen: "off"},
		Kafka:   hub.KafkaConfig{Listen: "off"},
		Classes: []hub.ClassConfig{{Name: "data", SegmentBytes: 256 << 10}},
		Topics:  []hub.TopicConfig{{Match: "*", Partitions: 2}},
		Logger:  slog.New(w.log).With("who", "hub"), FS: fs,
		PacketConn: w.packetConn(l, hubAddr),
	}
	if w.tuneHub != nil {
		w.tuneHub(&cfg)
	}
	h, err := hub.New(cfg)
	if err != nil {
		return fmt.Errorf("start the hub: %w", err)
	}
	l.mu.Lock()
	l.central = h
	l.mu.Unlock()
	l.running(h.Store())
	return h.Run(ctx)
}

// makeCerts writes an authority and certificates that are valid in the bubble, which
// begins in the year 2000.
func makeCerts(dir string) error {
	now, valid := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), 20*365*24*time.Hour
	ca, pair, err := pki.NewCA(rand.Reader, "simulation", now, valid)
	if err != nil {
		return err
	}
	hubPair, err1 := ca.Issue(rand.Reader, pki.RoleHub, "hub", []string{hubAddr.IP.String()}, now, valid)
	nodePair, err2 := ca.Issue(rand.Reader, pki.RoleNode, nodeID, nil, now, valid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for name, b := range map[string][]byte{
		"ca.crt": pair.Cert, "hub.crt": hubPair.Cert, "hub.key": hubPair.Key, "node.crt": nodePair.Cert, "node.key": nodePair.Key,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
