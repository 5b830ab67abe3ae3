package link

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tailrace/uplink/wire"
)

// DiagnoseConfig says what a diagnosis may cost.
type DiagnoseConfig struct {
	Client ClientConfig // of the node; Source is not used
	Bytes  int64        // sent over each transport to measure what it carries; 0 = 4 MiB, negative = none
	Idle   []time.Duration
	Step   func(what string) // told what is measured next; nil = nobody
}

// Diagnosis is what was measured of the path to one hub. Absent parts were not reached.
type Diagnosis struct {
	Hub         string       `json:"hub"`
	TCPHub      string       `json:"tcp_hub,omitempty"`
	Probes      ProbeResult  `json:"udp_probes"`
	QUIC        *PathResult  `json:"quic,omitempty"`
	TCP         *PathResult  `json:"tcp,omitempty"`
	Idle        []IdleResult `json:"idle,omitempty"` // over QUIC
	ClockOffset float64      `json:"clock_offset_seconds"`
	CertEnd     time.Time    `json:"certificate_ends"` // of the node
	Findings    []Finding    `json:"findings"`
}

// ProbeResult is what became of UDP packets that are not QUIC.
type ProbeResult struct {
	Address   string  `json:"address,omitempty"`
	Sent      int     `json:"sent"`
	Answered  int     `json:"answered"`
	RTTMin    float64 `json:"rtt_min_ms"`
	RTTMedian float64 `json:"rtt_median_ms"`
	RTTMax    float64 `json:"rtt_max_ms"`
	MaxPacket int     `json:"largest_payload"` // bytes of UDP payload that came back whole; 0 = not measured
	Error     string  `json:"error,omitempty"`
}

// PathResult is one transport.
type PathResult struct {
	Error         string  `json:"error,omitempty"`
	Handshake     float64 `json:"handshake_ms,omitempty"`
	RTT           float64 `json:"rtt_ms,omitempty"`
	BitsPerSecond float64 `json:"bits_per_second,omitempty"` // payload, as the hub counted it
	Bytes         int64   `json:"bytes,omitempty"`
	Loss          float64 `json:"loss_percent"`
	Queue         float64 `json:"queue_ms"` // how much longer a round trip takes under load
}

// IdleResult says whether the hub still reached the node after silence.
type IdleResult struct {
	Seconds float64 `json:"seconds"`
	Alive   bool    `json:"alive"`
}

// Finding is something that a person should know.
type Finding struct {
	Problem bool   `json:"problem"` // false: a remark
	What    string `json:"what"`
	Do      string `json:"do,omitempty"`
}

const (
	diagProbes  = 40
	diagEvery   = 50 * time.Millisecond
	diagStreams = 4 // connections at once, to see what the path carries and not what one sender dares
	diagSend    = 5 * time.Second
)

// probeSizes are UDP payloads: QUIC's least, and up to what quic-go takes in.
var probeSizes = []int{1200, 1252, 1332, 1372, 1412, 1452}

// Diagnose measures the path to the first hub, and to the first fallback over TCP. It
// sends and stores no records, and does not disturb the node's session. It returns an
// error only for a configuration that cannot be used; what does not work is in the Diagnosis.
func Diagnose(ctx context.Context, c DiagnoseConfig) (*Diagnosis, error) {
	cfg, err := c.Client.withDefaults()
	if err != nil {
		return nil, err
	}
	cfg.TLS.NextProtos = []string{alpnTest}
	c.Bytes = cmp.Or(c.Bytes, 4<<20)
	if c.Step == nil {
		c.Step = func(string) {}
	}
	x := &diagnosing{c: c, d: &dialer{c: &Client{cfg: cfg}}, out: &Diagnosis{Hub: cfg.Hubs[0]}}
	defer x.d.close()
	x.out.CertEnd = certEnd(cfg.TLS)
	x.probes(ctx)
	c.Step("QUIC: handshake and what it carries")
	x.out.QUIC = x.path(ctx, func(ctx context.Context) connection { return x.d.dialQUIC(ctx, cfg.Hubs[0]) })
	if len(cfg.Fallback) > 0 {
		x.out.TCPHub = cfg.Fallback[0]
		c.Step("TCP: handshake and what it carries")
		x.out.TCP = x.path(ctx, func(ctx context.Context) connection { return x.d.dialTCP(ctx, cfg.Fallback[0]) })
	}
	if x.out.QUIC.Error == "" {
		x.idle(ctx)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	x.out.Findings = x.out.findings(time.Now())
	return x.out, nil
}

func certEnd(t *tls.Config) time.Time {
	var c *tls.Certificate
	if len(t.Certificates) > 0 {
		c = &t.Certificates[0]
	} else if t.GetClientCertificate != nil {
		c, _ = t.GetClientCertificate(&tls.CertificateRequestInfo{})
	}
	if c == nil || c.Leaf == nil {
		return time.Time{}
	}
	return c.Leaf.NotAfter
}

type diagnosing struct {
	c   DiagnoseConfig
	d   *dialer
	out *Diagnosis
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// probes sends packets that are not QUIC: small ones in a row, then larger ones.
func (x *diagnosing) probes(ctx context.Context) {
	cfg, res := &x.d.c.cfg, &x.out.Probes
	x.c.Step("UDP: round trip, loss, packet size")
	addr, err := cfg.Resolve(cfg.Hubs[0])
	if err == nil {
		res.Address = addr.String()
		err = x.d.socket()
	}
	if err != nil {
		res.Error = err.Error()
		return
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		nonce uint64
		bytes int
		at    time.Time
	}
	answers := make(chan answer, 256)
	tr := x.d.tr // x.d closes it at the end
	go func() {
		var b [1600]byte
		for {
			n, _, err := tr.ReadNonQUICPacket(rctx, b[:])
			if err != nil {
				return
			}
			if n >= probeBytes && bytes.HasPrefix(b[:n], probeMagic) && b[4] == probeAnswer {
				select {
				case answers <- answer{binary.BigEndian.Uint64(b[5:]), n, time.Now()}:
				default:
				}
			}
		}
	}()
	base := cfg.Rand.Uint64()
	sent := map[uint64]time.Time{}
	var rtts []time.Duration
	ask := func(n uint64, size int) {
		p := make([]byte, size)
		copy(p, probeMagic)
		binary.BigEndian.PutUint64(p[5:], base+n)
		sent[base+n] = time.Now()
		_, _ = x.d.tr.WriteTo(p, addr) // too large for the interface: not answered
	}
	take := func(a answer) {
		if at, ok := sent[a.nonce]; ok {
			delete(sent, a.nonce)
			if a.bytes == probeBytes {
				rtts = append(rtts, a.at.Sub(at))
				return
			}
			res.MaxPacket = max(res.MaxPacket, a.bytes)
		}
	}
	wait := func(d time.Duration) bool {
		t := time.NewTimer(d)
		defer t.Stop()
		for {
			select {
			case a := <-answers:
				take(a)
			case <-t.C:
				return true
			case <-ctx.Done():
				return false
			}
		}
	}
	for i := range diagProbes {
		ask(uint64(i), probeBytes)
		res.Sent++
		if !wait(diagEvery) {
			return
		}
	}
	if !wait(2 * time.Second) {
		return
	}
	if res.Answered = len(rtts); res.Answered == 0 {
		return
	}
	slices.Sort(rtts)
	res.RTTMin, res.RTTMedian, res.RTTMax = ms(rtts[0]), ms(rtts[len(rtts)/2]), ms(rtts[len(rtts)-1])
	n := uint64(diagProbes)
	for range 3 { // a lost one is not one that does not fit
		for _, size := range probeSizes {
			ask(n, size)
			n++
		}
		if !wait(rtts[len(rtts)-1] + 200*time.Millisecond) {
			return
		}
	}
}

// path measures one transport. It leaves no connection behind.
func (x *diagnosing) path(ctx context.Context, dial func(context.Context) connection) *PathResult {
	res := &PathResult{}
	start := time.Now()
	main, err := x.open(ctx, dial)
	if err != nil {
		res.Error = closeReason(err).Error()
		return res
	}
	defer main.close()
	res.Handshake = ms(time.Since(start))
	rtt := time.Duration(1 << 62)
	for range 5 {
		d, offset, err := main.ping(ctx)
		if err != nil {
			res.Error = err.Error()
			return res
		}
		if d < rtt {
			rtt, x.out.ClockOffset = d, offset.Seconds()
		}
	}
	res.RTT = ms(rtt)
	if x.c.Bytes < 0 {
		return res
	}
	var load []*testConn
	for range diagStreams {
		t, err := x.open(ctx, dial)
		if err != nil {
			res.Error = closeReason(err).Error()
			return res
		}
		defer t.close()
		load = append(load, t)
	}
	stop := make(chan struct{})
	var loaded []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			d, _, err := main.ping(ctx)
			if err != nil {
				return
			}
			loaded = append(loaded, d)
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	counts := make([]testCount, len(load))
	errs := make([]error, len(load))
	var senders sync.WaitGroup
	began := time.Now()
	for i, t := range load {
		senders.Go(func() { counts[i], errs[i] = t.upload(ctx, x.c.Bytes/diagStreams, diagSend) })
	}
	senders.Wait()
	took := time.Since(began)
	close(stop)
	wg.Wait()
	var sentPackets, lostPackets uint64
	for i, n := range counts {
		res.Bytes += n.Bytes
		took = max(took, time.Duration(n.Nanos))
		q := load[i].conn.ConnectionStats()
		sentPackets, lostPackets = sentPackets+q.PacketsSent, lostPackets+q.PacketsLost
	}
	if err := errors.Join(errs...); err != nil && res.Bytes == 0 {
		res.Error = closeReason(err).Error()
		return res
	}
	if took > 0 {
		res.BitsPerSecond = float64(res.Bytes) * 8 / took.Seconds()
	}
	if sentPackets > 0 {
		res.Loss = 100 * float64(lostPackets) / float64(sentPackets)
	}
	if len(loaded) > 2 {
		slices.Sort(loaded)
		res.Queue = max(0, ms(loaded[len(loaded)/2]-rtt))
	}
	return res
}

// idle keeps silent for a while and then has the hub speak: does a firewall between
// still let it through?
func (x *diagnosing) idle(ctx context.Context) {
	for _, silence := range x.c.Idle {
		x.c.Step(fmt.Sprintf("silence of %v: does the hub still reach this node?", silence))
		alive, err := x.silence(ctx, silence)
		if err != nil {
			return
		}
		x.out.Idle = append(x.out.Idle, IdleResult{silence.Seconds(), alive})
		if !alive {
			return
		}
	}
}

func (x *diagnosing) silence(ctx context.Context, silence time.Duration) (bool, error) {
	dial := func(ctx context.Context) connection { return x.d.dialQUIC(ctx, x.out.Hub) }
	quiet, err := x.open(ctx, dial)
	if err != nil {
		return false, err
	}
	defer quiet.close()
	token := randomID(x.d.c.cfg.Rand)
	if _, err := quiet.command(ctx, "name", token[:]); err != nil {
		return false, err
	}
	t := time.NewTimer(silence)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	// From another socket: this one's mapping must not be refreshed.
	other := &dialer{c: x.d.c}
	defer other.close()
	caller, err := x.open(ctx, func(ctx context.Context) connection { return other.dialQUIC(ctx, x.out.Hub) })
	if err != nil {
		return false, err
	}
	defer caller.close()
	if _, err := caller.command(ctx, "poke", token[:]); err != nil {
		return false, nil // the hub has lost it
	}
	select {
	case <-quiet.poked:
		return true, nil
	case <-time.After(5 * time.Second):
		return false, nil
	case <-quiet.done:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// testConn is a test connection.
type testConn struct {
	conn  carrier
	st    controlStream
	poked chan struct{} // capacity 1
	done  chan struct{} // closed when the reader ended; err is set before
	err   error

	mu      sync.Mutex // guards the following
	next    uint64
	pongs   map[uint64]chan *wire.Heartbeat
	results map[uint64]chan *wire.CommandResult
}

func (x *diagnosing) open(ctx context.Context, dial func(context.Context) connection) (*testConn, error) {
	cfg := &x.d.c.cfg
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	c := dial(ctx)
	if c.err != nil {
		return nil, c.err
	}
	st, err := c.openControl(ctx)
	if err != nil {
		c.close(wire.CodeOK, "")
		return nil, err
	}
	t := &testConn{conn: c.carrier, st: st, poked: make(chan struct{}, 1), done: make(chan struct{}),
		pongs: map[uint64]chan *wire.Heartbeat{}, results: map[uint64]chan *wire.CommandResult{}}
	go t.read()
	if _, _, err := t.ping(ctx); err != nil {
		t.close()
		return nil, fmt.Errorf("the hub does not answer a test (is it older than this program?): %w", err)
	}
	return t, nil
}

func (t *testConn) close() {
	t.conn.close(wire.CodeOK, "")
	<-t.done
}

func (t *testConn) read() {
	defer close(t.done)
	r := wire.NewReader(t.st)
	for {
		m, err := r.Read()
		if err != nil {
			t.err = err
			return
		}
		t.mu.Lock()
		switch m := m.(type) {
		case *wire.Heartbeat:
			if ch := t.pongs[m.Sequence]; m.Reply && ch != nil {
				ch <- m
				delete(t.pongs, m.Sequence)
			} else if !m.Reply {
				select {
				case t.poked <- struct{}{}:
				default:
				}
			}
		case *wire.CommandResult:
			if ch := t.results[m.ID]; ch != nil {
				ch <- m
				delete(t.results, m.ID)
			}
		}
		t.mu.Unlock()
	}
}

// ping is one round trip, and how far the hub's clock is ahead.
func (t *testConn) ping(ctx context.Context) (rtt, offset time.Duration, err error) {
	ch := make(chan *wire.Heartbeat, 1)
	t.mu.Lock()
	t.next++
	n := t.next
	t.pongs[n] = ch
	sent := time.Now()
	_, err = sendMessages(t.st, nil, []wire.Message{&wire.Heartbeat{Sequence: n, Sent: sent.UnixNano(), Clock: wire.Clock{UnixNano: sent.UnixNano()}, Pad: make([]byte, wire.HeartbeatPad)}})
	t.mu.Unlock()
	if err != nil {
		return 0, 0, err
	}
	select {
	case m := <-ch:
		rtt = time.Since(sent)
		return rtt, time.Duration(m.Clock.UnixNano - sent.Add(rtt/2).UnixNano()), nil
	case <-time.After(10 * time.Second):
		return 0, 0, errors.New("no answer within 10 s")
	case <-t.done:
		return 0, 0, t.err
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
}

func (t *testConn) ask(name string, args []byte) (chan *wire.CommandResult, error) {
	ch := make(chan *wire.CommandResult, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	t.results[t.next] = ch
	_, err := sendMessages(t.st, nil, []wire.Message{&wire.Command{ID: t.next, Name: name, Args: args}})
	return ch, err
}

func (t *testConn) result(ctx context.Context, ch chan *wire.CommandResult) (*wire.CommandResult, error) {
	select {
	case m := <-ch:
		if m.Error != "" {
			return nil, errors.New(m.Error)
		}
		return m, nil
	case <-time.After(60 * time.Second):
		return nil, errors.New("no answer within a minute")
	case <-t.done:
		return nil, t.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *testConn) command(ctx context.Context, name string, args []byte) (*wire.CommandResult, error) {
	ch, err := t.ask(name, args)
	if err != nil {
		return nil, err
	}
	return t.result(ctx, ch)
}

// upload sends up to n bytes for at most the given time; the hub counts.
func (t *testConn) upload(ctx context.Context, n int64, most time.Duration) (testCount, error) {
	var count testCount
	ch, err := t.ask("receive", nil)
	if err != nil {
		return count, err
	}
	st, err := t.conn.openData(ctx, wire.LaneBulk)
	if err != nil {
		return count, err
	}
	chunk := make([]byte, 8<<10)
	for end := time.Now().Add(most); n > 0 && time.Now().Before(end); n -= int64(len(chunk)) {
		if _, err := st.Write(chunk[:min(n, int64(len(chunk)))]); err != nil {
			return count, err
		}
	}
	if c, ok := st.(io.Closer); ok {
		if err := c.Close(); err != nil {
			return count, err
		}
	}
	m, err := t.result(ctx, ch)
	if err != nil {
		return count, err
	}
	return count, cbor.Unmarshal(m.Body, &count)
}
