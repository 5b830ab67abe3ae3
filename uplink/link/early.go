package link

import (
	"cmp"
	"context"
	"crypto/tls"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// A node that holds a ticket says its Hello in QUIC's early data (0-RTT), and the hub answers with Welcome
// and Wants before the handshake is over: what the hub wants arrives a round trip earlier.
//
// Early data can be played again by anyone who saw it pass. So the hub answers it from what it knows
// (Previewer), and does nothing: no session is ended, none begun, no epoch adopted, nothing is counted as
// said by the node. The handshake ends with what only the node can make; then the Hello is admitted
// as any other, and when that plan is the one that was told, the session goes on with what was told.
// Only the Hello of a main connection goes early.

const (
	maxEarlyHello = 16 << 10 // bytes: surely leaves at once
	maxPreviews   = 256      // early Hellos at the hub whose handshake is not over; further ones wait
	stillFor      = time.Second
)

// A Previewer is a Sink that can say what Hello would answer, without doing or keeping anything;
// false = it cannot.
type Previewer interface {
	Preview(ctx context.Context, node string, h wire.Hello) (Plan, bool)
}

// greeting is a Hello, and what it was made of.
type greeting struct {
	hello      *wire.Hello
	generation uint64
	control    controlStream // where it was said already; nil = nowhere
}

// greet makes the next Hello. Called by Run, or while it waits for a dial.
func (c *Client) greet() *greeting {
	c.sequence++
	g := &greeting{generation: c.cfg.Source.Generation()}
	codecs := []wire.Codec{wire.CodecTelemetry, wire.CodecZstd, wire.CodecNone}
	switch {
	case c.cfg.NoCompression:
		codecs = codecs[2:]
	case c.cfg.NoTransform:
		codecs = codecs[1:]
	}
	g.hello = &wire.Hello{Version: wire.Version, MinVersion: 1, Node: c.cfg.NodeID, Session: randomID(c.cfg.Rand), Boot: c.cfg.Boot, Sequence: c.sequence,
		Clock: c.clock(), Inventory: c.cfg.Source.Inventory(), Codecs: codecs, Software: c.cfg.Software}
	if c.cfg.KnownStore != nil {
		g.hello.Store = c.cfg.KnownStore()
	}
	return g
}

// earlyConn is a connection on which the Hello has been said.
type earlyConn struct {
	quicConn
	greeting *greeting
}

// dialEarly dials, and says Hello in early data where there is a ticket that allows it. It
// returns when the handshake is over.
func (d *dialer) dialEarly(ctx context.Context, conf *tls.Config, qc *quic.Config) (carrier, error) {
	dial := d.tr.DialEarly
	if d.late || d.c.cfg.NoEarlyData {
		dial = d.tr.Dial
	}
	d.late = false
	conn, err := dial(ctx, d.addr, conf, qc)
	if err != nil {
		return nil, err
	}
	select {
	case <-conn.HandshakeComplete(): // no early data
		return quicConn{conn}, nil
	default:
	}
	g := d.c.greet()
	if b, err := wire.Append(nil, g.hello); err == nil && len(b) <= maxEarlyHello {
		if st, err := (quicConn{conn}).openControl(ctx); err == nil {
			st.SetWriteDeadline(time.Now().Add(controlWriteTimeout))
			if _, err := st.Write(b); err == nil {
				g.control = st
			}
		}
	}
	select {
	case <-conn.HandshakeComplete():
	case <-conn.Context().Done():
		return nil, context.Cause(conn.Context())
	case <-ctx.Done():
		conn.CloseWithError(0, "")
		return nil, context.Cause(ctx)
	}
	if !conn.ConnectionState().Used0RTT { // the hub did not take it: it is said again
		conn, err = conn.NextConnection(ctx)
		return quicConn{conn}, err
	}
	if g.control == nil {
		return quicConn{conn}, nil
	}
	return earlyConn{quicConn{conn}, g}, nil
}

// confirmed waits until the handshake is over: the node is who it says, and here.
func confirmed(ctx context.Context, c carrier) error {
	q, ok := c.(quicConn)
	if !ok {
		return nil
	}
	select {
	case <-q.HandshakeComplete():
		proved(q)
		return nil
	case <-q.Context().Done():
		return context.Cause(q.Context())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// early says whether data may come on c before its handshake is over.
func early(c carrier) bool {
	q, ok := c.(quicConn)
	if !ok {
		return false
	}
	select {
	case <-q.HandshakeComplete():
		return false
	default:
		return q.ConnectionState().Used0RTT
	}
}

// preview answers a Hello whose handshake is not over; nil = it must wait. Nothing of what it makes is
// known to anyone else: see takeOver.
func (s *Server) preview(ctx context.Context, conn carrier, st controlStream, r *wire.Reader, id string, h *wire.Hello) *hubSession {
	p, ok := s.cfg.Sink.(Previewer)
	if !ok || h.Node != id || h.MinVersion > wire.Version || h.Role == wire.RoleBulk {
		return nil
	}
	if old := s.session(id); old != nil && !old.still() { // what is held changes
		return nil
	}
	plan, ok := p.Preview(ctx, id, *h)
	if !ok {
		return nil
	}
	hs := newHubSession(s, conn, st, r, id, h, plan)
	hs.told = true
	msgs := []wire.Message{hs.welcome()}
	if hs.refusals != nil {
		msgs = append(msgs, hs.refusals)
	}
	if _, err := sendMessages(st, nil, append(msgs, hs.recv.Messages()...)); err != nil {
		return nil
	}
	s.handshakes.early.Add(1)
	return hs
}

// still says whether nothing of this session waits for the store, nor has come just now.
func (hs *hubSession) still() bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return hs.pending == 0 && len(hs.deliver) == 0 && time.Since(time.Unix(0, hs.lastHeard.Load())) >= stillFor
}

// holds says whether what was told in a preview is what the plan of the admitted Hello says.
func (hs *hubSession) holds(plan *Plan) bool {
	id, epoch := hs.s.cfg.Sink.Identity()
	return id == hs.storeID && epoch == hs.epoch && samePlan(hs.plan, *plan)
}

func samePlan(a, b Plan) bool {
	order := func(p []uplink.Progress) []uplink.Progress {
		return slices.SortedFunc(slices.Values(p), func(a, b uplink.Progress) int {
			return cmp.Or(slices.Compare(a.Epoch[:], b.Epoch[:]), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
		})
	}
	return a.Rate == b.Rate && maps.Equal(a.Mode, b.Mode) && maps.Equal(a.Refused, b.Refused) &&
		len(a.Progress) == len(b.Progress) && reflect.DeepEqual(order(a.Progress), order(b.Progress))
}

// Handshakes counts the connections of nodes since the start, by how they began: Early is a part of Resumed.
type Handshakes struct{ Full, Resumed, Early int64 }

// Handshakes tells how nodes connected.
func (s *Server) Handshakes() Handshakes {
	return Handshakes{s.handshakes.full.Load(), s.handshakes.resumed.Load(), s.handshakes.early.Load()}
}
