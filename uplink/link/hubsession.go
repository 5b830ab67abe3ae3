package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// First credit of a session by lane, outside the global budget: what an idle node
// may send at once. It grows with use, up to ServerConfig.Credit, while the budget lasts.
var firstCredit = [wire.Lanes]int64{64 << 10, 32 << 10, 256 << 10}

// hubSession is the hub's end of one session. Goroutines: one reads control, one
// accepts data streams, one a stream reads data; while there is something to do, one
// writes control and one appends to the Sink, in the order in which the Receiver delivers.
type hubSession struct {
	s        *Server
	conn     carrier
	control  controlStream
	reader   *wire.Reader
	node     string
	hello    *wire.Hello
	plan     Plan
	refusals wire.Message // of the first plan; nil = none
	info     SessionInfo
	storeID  wire.ID
	epoch    int32
	told     bool // Welcome, refusals and the first Wants were said before the Hello was admitted

	ctx       context.Context
	cancel    context.CancelCauseFunc
	drained   chan struct{} // closed when nothing of this session can reach the Sink any more
	onDrained func()
	wg        sync.WaitGroup // readers and the appender

	records, raw, wireBytes atomic.Int64
	lastHeard               atomic.Int64 // UnixNano
	clockOffset             atomic.Int64

	mu        sync.Mutex // guards the following
	meters    map[uint32]*WireCount
	refusing  bool // the node was told of refused topics
	recv      *uplink.Receiver
	queue     []wire.Message // to write
	writing   bool
	deliver   []uplink.Deliver // to append, bounded by credit
	spare     []uplink.Deliver // the other half of a double buffer
	appending bool
	pending   int // Appends whose done has not run
	closed    bool
	idle      chan struct{} // closed when closed and pending is 0
	grown     int64         // taken of the global budget
	flow      [wire.Lanes]flow
	conns     []carrier
	status    wire.Status
	forked    []wire.Fork
	lastCmd   uint64
	results   map[uint64]chan wire.CommandResult
}

func newHubSession(s *Server, conn carrier, st controlStream, r *wire.Reader, node string, h *wire.Hello, plan Plan) *hubSession {
	hs := &hubSession{s: s, conn: conn, control: st, reader: r, node: node, hello: h, plan: plan, drained: make(chan struct{}), idle: make(chan struct{}), results: map[uint64]chan wire.CommandResult{}}
	hs.info = SessionInfo{Session: h.Session, Boot: h.Boot, Remote: conn.RemoteAddr().String(), Since: time.Now(), Software: h.Software}
	hs.storeID, hs.epoch = s.cfg.Sink.Identity()
	hs.ctx, hs.cancel = context.WithCancelCause(conn.Context())
	hs.lastHeard.Store(time.Now().UnixNano())
	hs.clockOffset.Store(h.Clock.UnixNano - time.Now().UnixNano())
	credit := firstCredit
	for l := range credit {
		credit[l] = min(credit[l], s.cfg.Credit[l])
	}
	hs.recv = uplink.NewReceiver(uplink.ReceiverConfig{Node: node, Credit: credit, Split: s.cfg.Split}, h.Inventory)
	hs.refusals = hs.planned(&h.Inventory, &plan)
	return hs
}

func (hs *hubSession) welcome() *wire.Welcome {
	codec := wire.CodecNone
	for _, c := range hs.hello.Codecs {
		if c <= wire.CodecTelemetry {
			codec = c
			break
		}
	}
	w := &wire.Welcome{Version: wire.Version, Boot: hs.s.boot, Session: hs.hello.Session, StoreID: hs.storeID, StoreEpoch: hs.epoch,
		Clock: wire.Clock{UnixNano: time.Now().UnixNano(), Trusted: true}, Codec: codec,
		FrameBytes: uint32(hs.s.cfg.FrameBytes), WindowBytes: uint32(hs.s.cfg.WindowBytes), MaxBulk: uint32(hs.s.cfg.MaxBulk),
		HeartbeatMS: uint32(hs.s.cfg.Heartbeat.Milliseconds()), SpreadMS: uint32(hs.s.cfg.RestartSpread.Milliseconds())}
	for l := range w.Credit {
		w.Credit[l] = uint64(min(firstCredit[l], hs.s.cfg.Credit[l]))
	}
	return w
}

// run carries the session until it ends, and returns when nothing of it reaches the
// Sink any more.
func (hs *hubSession) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { hs.end(&localClose{wire.CodeShutdown, "the hub is shutting down"}) })
	defer stop()
	hs.s.cfg.Sink.Connected(hs.node, hs.info)
	var msgs []wire.Message
	if !hs.told {
		msgs = append(msgs, hs.welcome())
		if hs.refusals != nil {
			msgs = append(msgs, hs.refusals)
		}
	}
	if hs.plan.Config != nil {
		msgs = append(msgs, hs.plan.Config)
	}
	hs.send(msgs...)
	hs.kick()
	hs.wg.Go(func() {
		if err := hs.readStreams(hs.conn); err != nil {
			hs.end(err)
		}
	})
	hs.wg.Go(hs.readControl)
	<-hs.ctx.Done()
	err := closeReason(context.Cause(hs.ctx))
	hs.mu.Lock()
	conns := append([]carrier{hs.conn}, hs.conns...)
	hs.mu.Unlock()
	for _, c := range conns { // unblocks every reader
		hs.closeConn(c)
	}
	hs.wg.Wait()
	hs.mu.Lock()
	hs.closed = true
	if hs.pending == 0 {
		close(hs.idle)
	}
	for id, ch := range hs.results {
		close(ch)
		delete(hs.results, id)
	}
	hs.mu.Unlock()
	<-hs.idle
	hs.s.reserved.Add(-hs.grown)
	hs.onDrained()
	hs.s.cfg.Sink.Disconnected(hs.node, hs.info, err)
	close(hs.drained)
	return err
}

// end ends the session; the first reason counts.
func (hs *hubSession) end(err error) { hs.cancel(err) }

func (hs *hubSession) addConn(c carrier) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.closed || hs.ctx.Err() != nil || len(hs.conns) >= hs.s.cfg.MaxBulk {
		return false
	}
	hs.conns = append(hs.conns, c)
	hs.wg.Add(1)
	return true
}

func (hs *hubSession) removeConn(c carrier) {
	hs.mu.Lock()
	if i := slices.Index(hs.conns, c); i >= 0 {
		hs.conns = slices.Delete(hs.conns, i, i+1)
	}
	hs.mu.Unlock()
	hs.wg.Done()
}

func (hs *hubSession) send(msgs ...wire.Message) {
	hs.mu.Lock()
	hs.queue = append(hs.queue, msgs...)
	over := len(hs.queue) > maxQueued
	hs.mu.Unlock()
	if over {
		hs.end(errors.New("the node does not read its control stream"))
	}
	hs.kick()
}

// kick starts the control writer when it is not at work.
func (hs *hubSession) kick() {
	hs.mu.Lock()
	start := !hs.writing && hs.ctx.Err() == nil && !hs.closed
	if start {
		hs.writing = true
	}
	hs.mu.Unlock()
	if start {
		go hs.writeControl()
	}
}

// writeControl writes until nothing is left to say. Acks that become due during a
// write go with the next: that is how they are coalesced.
func (hs *hubSession) writeControl() {
	var buf []byte
	for {
		if d := hs.s.cfg.AckDelay; d > 0 {
			t := time.NewTimer(d)
			select {
			case <-t.C:
			case <-hs.ctx.Done():
				t.Stop()
			}
		}
		hs.mu.Lock()
		msgs := append(hs.queue, hs.recv.Messages()...)
		hs.queue = nil
		if len(msgs) == 0 || hs.ctx.Err() != nil {
			hs.writing = false
			hs.mu.Unlock()
			return
		}
		hs.mu.Unlock()
		var err error
		if buf, err = sendMessages(hs.control, buf, msgs); err != nil {
			hs.end(fmt.Errorf("write control stream: %w", err))
		}
	}
}

func (hs *hubSession) readControl() {
	for {
		m, err := hs.reader.Read()
		if err == nil {
			hs.lastHeard.Store(time.Now().UnixNano())
			err = hs.handle(m)
		}
		if err != nil {
			hs.end(err)
			return
		}
	}
}

func (hs *hubSession) handle(m wire.Message) error {
	sink := hs.s.cfg.Sink
	switch m := m.(type) {
	case *wire.Heartbeat:
		now := time.Now()
		if !m.Reply && !m.Quiet {
			hs.clockOffset.Store(m.Clock.UnixNano + int64(hs.conn.ConnectionStats().SmoothedRTT/2) - now.UnixNano())
			hs.send(&wire.Heartbeat{Sequence: m.Sequence, Sent: m.Sent, Reply: true, Clock: wire.Clock{UnixNano: now.UnixNano(), Trusted: true}, Pad: make([]byte, wire.HeartbeatPad)})
		}
	case *wire.Status:
		hs.mu.Lock()
		hs.status = *m
		hs.mu.Unlock()
		sink.Status(hs.node, *m)
	case *wire.Inventory:
		if !slices.EqualFunc(m.Epochs, hs.hello.Inventory.Epochs, func(a, b wire.EpochInfo) bool { return a.ID == b.ID }) {
			return fmt.Errorf("%w: the node's epochs changed within a session", wire.ErrMalformed)
		}
		plan, err := sink.Inventory(hs.ctx, hs.node, *m)
		if err != nil {
			return fmt.Errorf("plan for new partitions: %w", err)
		}
		hs.mu.Lock()
		refusals := hs.planned(m, &plan)
		hs.mu.Unlock()
		if refusals != nil {
			hs.send(refusals)
		}
		hs.kick()
	case *wire.GapReport:
		return hs.declare(m)
	case *wire.Skip:
		hs.mu.Lock()
		var err error
		hs.deliver, err = hs.recv.Skip(hs.deliver, m)
		hs.startAppend()
		hs.mu.Unlock()
		hs.kick()
		return err
	case *wire.Fork:
		hs.mu.Lock()
		o, ok := hs.recv.Fork(m)
		if ok && len(hs.forked) < 1024 {
			hs.forked = append(hs.forked, *m)
		}
		hs.mu.Unlock()
		if ok {
			hs.s.cfg.Logger.Error("the node's log is not the one held here: nothing more is taken of this partition", "node", hs.node, "topic", o.Topic, "partition", o.Partition, "epoch", o.Epoch.String(), "offset", m.Offset)
			sink.Fork(hs.node, o, *m)
		}
		hs.kick()
	case *wire.CommandResult:
		hs.mu.Lock()
		ch := hs.results[m.ID]
		delete(hs.results, m.ID)
		hs.mu.Unlock()
		if ch != nil {
			ch <- *m // capacity 1
		}
	case *wire.Error:
		if m.Want == 0 {
			return &RemoteError{Code: m.Code, Message: m.Message}
		}
		hs.s.cfg.Logger.Error("the node refuses a want", "node", hs.node, "want", m.Want, "code", int(m.Code), "err", m.Message)
		hs.mu.Lock()
		hs.recv.Refused(m.Want)
		hs.mu.Unlock()
	default:
		return fmt.Errorf("%w: message type %d from a node within a session", wire.ErrMalformed, m.Type())
	}
	return nil
}

func (hs *hubSession) declare(m *wire.GapReport) error {
	hs.mu.Lock()
	o, ok := hs.recv.Gap(m)
	hs.mu.Unlock()
	if !ok {
		return nil
	}
	held, err := hs.s.cfg.Sink.Declare(hs.ctx, o, m.Gaps)
	if err != nil {
		return &RefuseError{Code: wire.CodeUnavailable, Message: fmt.Sprintf("declare gaps of %s: %v", o, err), RetryAfter: time.Second}
	}
	hs.mu.Lock()
	hs.deliver, err = hs.recv.Declared(hs.deliver, m, held)
	hs.startAppend()
	hs.mu.Unlock()
	hs.kick()
	return err
}

func (hs *hubSession) command(ctx context.Context, name string, args []byte) (wire.CommandResult, error) {
	ch := make(chan wire.CommandResult, 1)
	m := &wire.Command{Name: name, Args: args}
	if dl, ok := ctx.Deadline(); ok {
		m.ExpireMS = dl.UnixMilli()
	}
	hs.mu.Lock()
	if hs.closed || len(hs.results) >= 64 {
		hs.mu.Unlock()
		return wire.CommandResult{}, fmt.Errorf("command %q to node %s: %w or 64 commands wait already", name, hs.node, ErrNotConnected)
	}
	hs.lastCmd++
	m.ID = hs.lastCmd
	hs.results[m.ID] = ch
	hs.mu.Unlock()
	hs.send(m)
	select {
	case r, ok := <-ch:
		if !ok {
			return r, ErrNotConnected
		}
		return r, nil
	case <-ctx.Done():
		hs.mu.Lock()
		delete(hs.results, m.ID)
		hs.mu.Unlock()
		return wire.CommandResult{}, ctx.Err()
	}
}

func (hs *hubSession) state() NodeState {
	q := hs.conn.ConnectionStats()
	hs.mu.Lock()
	defer hs.mu.Unlock()
	st := NodeState{Node: hs.node, Info: hs.info, Transport: hs.conn.transport(), RTT: q.SmoothedRTT, ClockOffset: time.Duration(hs.clockOffset.Load()),
		BytesReceived: hs.raw.Load(), WireBytes: hs.wireBytes.Load(), Records: hs.records.Load(), LastHeard: time.Unix(0, hs.lastHeard.Load()),
		Status: hs.status, Forked: slices.Clone(hs.forked), Connections: 1 + len(hs.conns)}
	for l := range wire.Lane(wire.Lanes) {
		_, out := hs.recv.Limit(l)
		st.Outstanding += out
	}
	return st
}
