package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// Client keeps a node connected to its hub. Run once.
type Client struct {
	cfg      ClientConfig
	lost     atomic.Int64 // socket errors treated as lost packets
	acked    atomic.Int64
	linkUp   chan struct{} // capacity 1
	command  chan struct{} // capacity 1: held while a command runs
	sequence uint64        // owned by Run, and by a dial that it waits for
	tickets  *tickets

	mu      sync.Mutex // guards the following
	state   ClientState
	refused []RefusedTopic
	policy  Policy
	traffic traffic               // has a lock of its own
	wire    meters                // has a lock of its own
	live    map[*session]struct{} // at most two: the one in use and the one that replaces it
}

// NewClient checks the configuration; it starts nothing.
func NewClient(cfg ClientConfig) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err == nil && cfg.Source == nil {
		err = errors.New("uplink client: no Source")
	}
	if err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, tickets: newTickets(cfg.Tickets, cfg.Logger), linkUp: make(chan struct{}, 1), command: make(chan struct{}, 1), live: map[*session]struct{}{}, policy: Open(cfg.RateLimit)}, nil
}

// LinkUp tells the client that the network changed for the better (an interface came
// up, an address changed): it redials at once beside a connection that makes no
// progress, and cuts a back-off short.
func (c *Client) LinkUp() {
	select {
	case c.linkUp <- struct{}{}:
	default:
	}
}

// State is a snapshot.
func (c *Client) State() ClientState {
	c.mu.Lock()
	st := c.state
	st.Refused = slices.Clone(c.refused)
	var cur *session
	for s := range c.live {
		if s.id == st.Session {
			cur = s
		}
	}
	c.mu.Unlock()
	st.SendErrors, st.AckedRecords = c.lost.Load(), c.acked.Load()
	if cur != nil {
		l := cur.linkStatus()
		st.RTT, st.BytesSent, st.InFlightBytes = time.Duration(l.RTTMicros)*time.Microsecond, l.BytesSent, l.InFlightBytes
		st.ClockOffset = time.Duration(cur.clockOffset.Load())
		st.Remote = cur.conn.RemoteAddr().String()
	}
	return st
}

// Run connects, replicates and reconnects until ctx ends; it returns ctx's error.
//
// At most one session is in use. When its watchdog sees no progress, the next
// session is dialled beside it: whichever works first goes on, and the hub lets the
// newer displace the older.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.watchSource(ctx) })
	wg.Go(func() { c.tickets.save(ctx.Done()) })
	d := &dialer{c: c}
	var cur *session
	defer func() {
		cancel()
		if cur != nil {
			cur.close(wire.CodeShutdown, "the node is shutting down")
			<-cur.done
		}
		d.close()
		wg.Wait()
	}()
	for ctx.Err() == nil {
		if cur != nil {
			select {
			case <-cur.done:
				c.setDisconnected(cur.err)
				d.ended(cur)
				cur = nil
				d.pause(ctx, nil)
				continue
			default:
			}
		}
		if cur == nil || cur.stalled() {
			next, err := d.next(ctx, cur)
			if next != nil {
				if cur != nil {
					cur.close(wire.CodeSuperseded, "replaced by a newer connection of this node")
					<-cur.done
				}
				cur = next
				c.setConnected(cur)
				continue
			}
			if cur == nil && ctx.Err() == nil {
				c.setDisconnected(err)
			}
			d.pause(ctx, cur)
			continue
		}
		var back <-chan time.Time
		if cur.conn.transport() == OverTCP {
			back = time.After(time.Until(d.choice.returnAt))
		}
		change := false
		select {
		case <-ctx.Done():
		case <-cur.done:
		case <-cur.stall:
		case <-c.linkUp:
			cur.probe()
		case m := <-cur.measured:
			change = d.judge(cur, m, time.Now())
		case <-back:
			d.choice.only, change = OverQUIC, true
		}
		if change {
			returning := d.choice.only == OverQUIC
			if next, err := d.change(ctx); err == nil {
				d.choice.returned = returning
				cur.close(wire.CodeSuperseded, "replaced by a connection over "+string(next.conn.transport()))
				<-cur.done
				cur = next
				c.setConnected(cur)
			}
		}
	}
	return ctx.Err()
}

// watchSource passes the Source's one signal to the sessions there are.
func (c *Client) watchSource(ctx context.Context) {
	changed := c.cfg.Source.Changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		c.mu.Lock()
		for s := range c.live {
			s.sourceChanged()
		}
		c.mu.Unlock()
	}
}

func (c *Client) register(s *session) Policy {
	c.mu.Lock()
	c.live[s] = struct{}{}
	p := c.policy
	c.mu.Unlock()
	c.setRefused(nil) // said anew
	return p
}

func (c *Client) unregister(s *session) {
	c.mu.Lock()
	delete(c.live, s)
	c.mu.Unlock()
}

func (c *Client) setConnected(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.state.Session.IsZero() {
		c.state.Reconnects++
	}
	c.state.Connected, c.state.Hub, c.state.Since = true, s.hub, time.Now()
	c.state.Session, c.state.StoreID, c.state.Transport = s.id, s.welcome.StoreID, s.conn.transport()
	c.cfg.Logger.Info("connected to hub", "hub", s.hub, "over", string(s.conn.transport()), "session", s.id.String(), "store", s.welcome.StoreID.String())
}

func (c *Client) setDisconnected(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state.Connected || c.state.Since.IsZero() {
		c.state.Since = time.Now()
	}
	c.state.Connected, c.state.LastError = false, fmt.Sprint(err)
	c.cfg.Logger.Warn("no connection to a hub", "hub", c.state.Hub, "err", err)
}

// dialer finds a hub: back-off, the list of hubs, the socket. Owned by Client.Run.
type dialer struct {
	c        *Client
	tr       *quic.Transport
	hubs     []string // Drain may name others
	at       int      // in hubs
	failures int
	earliest time.Time     // a hub asked not to come back before
	addr     net.Addr      // last dialled
	boot     wire.ID       // of the hub that welcomed last
	bootAt   string        // its name
	answers  atomic.Bool   // a hub has answered a probe
	endProbe func()        // of the last handshake
	silent   bool          // the hub is heard no more: it ended, or a session or a dial met silence
	spread   bool          // the last dial was put off because the hub had restarted
	timedOut bool          // nobody answered the last handshake
	choice   choice        // of the transport
	timeouts int           // handshakes that nobody answered, one after the other
	rtt      time.Duration // of the session before, with what stood in the queue
	late     bool          // an early Hello came to nothing: the next is none
	hurried  bool          // a back-off was cut short since the last session, although no probe had been lost
	heard    atomic.Bool   // the hub has answered the present handshake
	busy     bool          // the hub refused the last handshake because of others

	tcpSpread time.Duration // of the hub's nodes over TCP, when it was away
	tcpFrom   time.Time     // this one's turn
}

// next dials the next hub and opens a session there.
func (d *dialer) next(ctx context.Context, beside *session) (*session, error) {
	if d.hubs == nil {
		d.hubs = d.c.cfg.Hubs
	}
	hub := d.hubs[d.at%len(d.hubs)]
	d.silent = d.silent || beside != nil
	s, err := d.dial(ctx, hub)
	if err == nil {
		return s, nil
	}
	err = fmt.Errorf("dial hub %s: %w", hub, closeReason(err))
	var r *restarted
	if d.spread = errors.As(err, &r) || d.spread && isBusy(err); r != nil {
		d.failures, d.earliest = 0, time.Now().Add(r.after)
		return nil, err
	}
	d.failed(err)
	if beside == nil && d.failures%4 == 0 {
		d.close() // a fresh socket: the old one may sit on an interface or a NAT entry that is gone
	}
	d.c.mu.Lock()
	d.c.state.Hub = hub
	d.c.mu.Unlock()
	return nil, err
}

// change dials over choice.only beside the session in use.
func (d *dialer) change(ctx context.Context) (*session, error) {
	if d.hubs == nil {
		d.hubs = d.c.cfg.Hubs
	}
	s, err := d.dial(ctx, d.hubs[d.at%len(d.hubs)])
	if err != nil {
		d.c.cfg.Logger.Info("the other transport does not work", "err", closeReason(err))
		d.choice.returnAt = time.Now().Add(d.choice.returnIn)
	}
	return s, err
}

// socket opens the socket when there is none.
func (d *dialer) socket() error {
	if d.tr != nil {
		return nil
	}
	pc, err := d.c.cfg.PacketConn()
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	d.tr = &quic.Transport{Conn: quiet(pc, &d.c.lost)}
	return nil
}

func (d *dialer) dial(ctx context.Context, hub string) (s *session, err error) {
	c := d.c
	defer func() {
		if err != nil {
			d.probed()
		} // else they go on until the hub has answered one: it drops what a whole fleet asks at once
	}()
	conn, err := d.connect(ctx, hub)
	if err != nil {
		return nil, err
	}
	_, isEarly := conn.carrier.(earlyConn)
	s, err = open(ctx, c, conn.carrier, hub, conn.again)
	if err != nil {
		d.late = isEarly // the next Hello waits for the handshake
		conn.close(codeOf(err), clip(err.Error()))
		return nil, err
	}
	d.tcpSpread = min(time.Duration(s.welcome.SpreadMS)*time.Millisecond, time.Minute)
	d.boot, d.bootAt, d.hurried, d.spread, d.silent = s.welcome.Boot, hub, false, false, false
	d.began(s, time.Now())
	return s, nil
}

// handshake dials. Where the hub was heard no more, it is asked first: a handshake that begins while
// nobody is there repeats itself, and the repetitions of a whole fleet reach the hub in the moment of its return.
// One that began while the path was down repeats itself ever more slowly: when a probe or an event of the network
// finds the path back, it is begun anew, once. When the hub turns out to have restarted, it is given up: see restarted.
func (d *dialer) handshake(ctx context.Context, hub string, conf *tls.Config, qc *quic.Config) (carrier, error) {
	d.probed()
	timeout := d.timeout()
	qc.HandshakeIdleTimeout = timeout
	pctx, endProbe := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	d.endProbe = endProbe // not here: an answer that comes later counts, too
	tctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	up := probePath(pctx, d.tr, d.addr, d.c.cfg.Probe, d.c.cfg.Rand, &d.c.traffic)
	boot, fraction := d.boot, d.c.cfg.Rand.Float64()
	if d.bootAt != hub || d.spread { // this node has waited already
		boot = wire.ID{}
	}
	restart := func(a pathUp) error {
		if boot.IsZero() || a.boot == boot {
			return nil
		}
		return &restarted{time.Duration(fraction * float64(a.spread))}
	}
	if d.answers.Load() && (d.silent || d.spread || d.busy) {
		t := time.NewTimer(d.c.cfg.DialTimeout / 2)
		defer t.Stop()
		select {
		case a := <-up:
			up = nil
			if err := restart(a); err != nil {
				return nil, err
			}
			if a.busy {
				return nil, errBusy
			}
		case <-d.c.linkUp:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	hctx, cancel := context.WithCancelCause(tctx)
	spread := d.spread
	go d.watchPath(hctx, pctx, up, func(a pathUp) error {
		if a.missed == 0 || spread || d.heard.Load() { // the hub has this handshake already, or is only slow
			return nil
		}
		if err := restart(a); err != nil {
			return err
		}
		if time.Duration(a.missed)*d.c.cfg.Probe < time.Second { // it will soon be repeated by itself
			return nil
		}
		return errPathUp
	}, cancel)
	conn, err := d.dialOnce(hctx, conf, qc)
	cause := context.Cause(hctx)
	cancel(nil)
	var r *restarted
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.As(cause, &r):
		return nil, r
	case errors.Is(cause, errPathUp):
		tctx, stop := context.WithTimeout(ctx, d.c.cfg.DialTimeout)
		defer stop()
		return d.dialOnce(tctx, conf, qc)
	}
	return conn, err
}

// watchPath looks after a handshake until it is over and the probes have come to an answer or their end: answered says
// whether an answer ends the handshake.
func (d *dialer) watchPath(handshake, probes context.Context, up <-chan pathUp, answered func(pathUp) error, end context.CancelCauseFunc) {
	over, unanswered, linkUp := handshake.Done(), probes.Done(), d.c.linkUp
	if up == nil {
		unanswered = nil
	}
	for up != nil || over != nil {
		select {
		case a := <-up:
			d.answers.Store(true)
			up, unanswered = nil, nil
			if err := answered(a); err != nil {
				end(err)
			}
		case <-linkUp:
			end(errPathUp)
		case <-over:
			over, linkUp = nil, nil
		case <-unanswered: // once: the handshake may last longer
			up, unanswered = nil, nil
		}
	}
}

func (d *dialer) dialOnce(ctx context.Context, conf *tls.Config, qc *quic.Config) (carrier, error) {
	d.heard.Store(false)
	conn, err := d.dialEarly(ctx, conf, qc)
	d.timedOut = err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) || isTimeout(err)
	if err == nil {
		d.timeouts = 0
		return conn, nil
	}
	if d.timedOut {
		d.timeouts++
	}
	d.silent = d.silent || d.timedOut
	d.c.traffic.add(failedDial)
	return nil, err
}

// timeout is how long a handshake may take. On a slow link what was sent before stands in the queue, of the session
// before or of the handshake before: each that is begun anew repeats itself quickly and makes the queue longer, one
// that goes on ever more slowly.
func (d *dialer) timeout() time.Duration {
	base := d.c.cfg.DialTimeout
	return min(base<<min(d.timeouts, 2)+2*d.rtt, 6*base)
}

// probed ends the probes of the last handshake.
func (d *dialer) probed() {
	if d.endProbe != nil {
		d.endProbe()
	}
}

// restarted is a dial that was given up because the hub turned out to be a later start of
// itself: all its nodes notice that at once, and come back spread over what it says.
type restarted struct{ after time.Duration }

func (r *restarted) Error() string {
	return fmt.Sprintf("the hub was restarted, its nodes come back spread over time: this one in %v", r.after.Round(time.Millisecond))
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

var errPathUp = errors.New("the path to the hub is back")

func (d *dialer) failed(err error) {
	d.failures++
	d.at++
	if d.busy = isBusy(err); d.busy {
		d.failures = max(d.failures, busyFailures)
	}
	var re *RemoteError
	if errors.As(err, &re) && len(re.hubs) > 0 { // two hubs that name each other are dialled ever more slowly all the same
		d.hubs, d.at = append(re.hubs, d.c.cfg.Hubs...), 0
	}
	d.retryAfter(err)
}

// retryAfter honours what a hub ordered. A node that was superseded or fenced comes
// back late: two copies of one node must not push each other out every second.
func (d *dialer) retryAfter(err error) {
	var re *RemoteError
	if !errors.As(err, &re) {
		return
	}
	after := re.RetryAfter
	if after == 0 && (re.Code == wire.CodeSuperseded || re.Code == wire.CodeFenced || re.Code == wire.CodeAuth || re.Code == wire.CodeVersion) {
		after = d.c.cfg.BackoffMax / 2
	}
	if after > 0 {
		// Spread over half as much again, so that what a hub sent away does not return at once.
		d.earliest = time.Now().Add(after + time.Duration(d.c.cfg.Rand.Int64N(int64(after)/2+1)))
	}
}

// ended looks at how a session ended: after a good one the back-off starts anew.
func (d *dialer) ended(s *session) {
	d.late = s.early && !s.useful.Load()
	d.rtt = s.conn.ConnectionStats().SmoothedRTT
	if s.useful.Load() {
		d.failures = 0
	}
	var reset *quic.StatelessResetError
	var re *RemoteError
	if s.conn.transport() == OverTCP && errors.As(s.err, &re) && re.Code == wire.CodeShutdown {
		d.tcpFrom = time.Now().Add(d.turn())
	}
	d.silent = d.silent || errors.As(s.err, &reset) || errors.As(s.err, &re) && re.Code == wire.CodeShutdown
	var le *localClose
	if errors.As(s.err, &le) { // we ended it ourselves, and the hub is well
		return
	}
	if !s.useful.Load() || errors.As(s.err, &re) && re.Code != wire.CodeShutdown && re.Code != wire.CodeOK {
		d.failed(s.err) // a hub that sent us away, or whose store fails, is not dialled at once
		return
	}
	if len(s.drainHubs) > 0 {
		d.hubs, d.at = append(s.drainHubs, d.c.cfg.Hubs...), 0
	}
	d.retryAfter(s.err)
}

// pause waits before the next dial: exponential back-off with full jitter. The first
// dial after a good session goes at once, unless the hub asked otherwise. It returns
// early when the link came up or when beside makes progress again.
func (d *dialer) pause(ctx context.Context, beside *session) {
	d.probed()
	now := time.Now()
	var wait time.Duration
	if d.failures > 0 {
		top := d.c.cfg.BackoffMin << min(d.failures, 20)
		if top > d.c.cfg.BackoffMax || top <= 0 {
			top = d.c.cfg.BackoffMax
		}
		wait = time.Duration(d.c.cfg.Rand.Int64N(int64(top)) + 1)
	}
	wait = max(wait, d.earliest.Sub(now))
	if wait <= 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	var recovered, over <-chan struct{}
	if beside != nil {
		recovered, over = beside.recovered, beside.done
	}
	var up <-chan pathUp
	if d.addr != nil && !d.earliest.After(now) && !d.busy && d.socket() == nil { // the path to a busy hub is known to work
		pctx, cancel := context.WithCancel(ctx)
		defer cancel()
		up = probePath(pctx, d.tr, d.addr, d.c.cfg.Probe, d.c.cfg.Rand, &d.c.traffic)
	}
	for {
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-recovered:
		case <-over:
		case a := <-up:
			d.answers.Store(true)
			d.silent = false
			// Answered at once: either the path came back in this moment, or it was not what
			// failed. The first is believed once.
			if a.missed == 0 {
				if d.hurried || !d.timedOut {
					up = nil
					continue
				}
				d.hurried = true
			}
			if a.boot == d.boot {
				d.failures = 0
				return
			}
			up, d.spread = nil, true
			t.Reset(time.Duration(d.c.cfg.Rand.Int64N(int64(a.spread) + 1)))
			continue
		case <-d.c.linkUp:
			d.failures = 0
		}
		return
	}
}

func (d *dialer) close() {
	d.probed()
	if d.tr != nil {
		d.tr.Close()
		d.tr.Conn.Close()
		d.tr = nil
	}
}
