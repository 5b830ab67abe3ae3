package link

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// door bounds the handshakes that are under way at a hub, over QUIC and TCP together. A handshake is
// most of what a node costs a hub, it is done for anybody, and it is worth something only when it ends while the
// node still waits. A hub that is short of CPU and begins all that come spends it on handshakes of which each takes
// longer than its node waits: none ends, and all come again. So:
//
//   - At most `most` are under way, and of one address (IPv6: /64) at most `mostOf`.
//   - At most an eighth of either wait for the hub itself to look at them: these tell a hub that is short of CPU from
//     nodes that are far away. A hub that keeps up has none, but for those of whose first message a packet is missing.
//   - At most a quarter of all these is of addresses that have not shown that they receive what is sent there. Beyond, a
//     node is asked to begin again with a token (QUIC's Retry), which costs the hub no state: whoever writes
//     others' addresses on his packets takes no place from them, and who has given up does not come back with it.
//
// What is too much is refused before it costs anything, and comes again later (busyFailures).
type door struct {
	most, mostOf int
	log          *slog.Logger

	mu       sync.Mutex // guards the following
	n        Door
	all      places
	unproven places // of all: the address is not known to receive
	of       map[netip.Addr]*places
	warned   time.Time
}

// places are handshakes under way.
type places struct {
	taken   int
	unheard int // of taken: the hub has not looked at the first message yet
}

// Door counts handshakes at a hub since its start, of QUIC and TCP together.
type Door struct {
	Begun    int64 // handshakes that the hub took up
	Ended    int64 // the node is who its certificate says
	TimedOut int64 // the other end was heard no more, or too late
	Failed   int64 // for another reason: a certificate, a close
	Refused  int64 // not begun: too many were under way
	Crowded  int64 // not begun: too many of one address were
	Retries  int64 // asked to show that the address is right
	UnderWay int64
}

func newDoor(most, mostOf int, log *slog.Logger) *door {
	return &door{most: most, mostOf: mostOf, log: log, of: map[netip.Addr]*places{}}
}

// attempt is one handshake.
type attempt struct {
	d      *door
	from   netip.Addr
	proven bool
	stop   func() bool // no more word of its connection's end

	heard, over bool // guarded by door.mu
}

type attemptKey struct{}

var errBusy = errors.New("as many handshakes as allowed are under way")

// busyFailures is where the back-off of a node begins whose handshake was refused, whatever came before: a refusal costs both
// ends less than a handshake, but not nothing, and a fleet that comes again every few seconds would keep its hub busy with that alone.
const busyFailures = 3

// isBusy says that a hub began no handshake because of those under way. It says so, too, when it closes.
func isBusy(err error) bool {
	var te *quic.TransportError
	return errors.Is(err, errBusy) || errors.As(err, &te) && te.Remote && te.ErrorCode == quic.ConnectionRefused
}

// addressKey is what counts as one address: IPv6 hosts choose among 2^64 of their own.
func addressKey(a net.Addr) netip.Addr {
	var ip netip.Addr
	switch a := a.(type) {
	case *net.UDPAddr:
		ip = a.AddrPort().Addr()
	case *net.TCPAddr:
		ip = a.AddrPort().Addr()
	default:
		p, _ := netip.ParseAddrPort(a.String())
		ip = p.Addr()
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			ip = p.Addr()
		}
	}
	return ip
}

// doubts says that from has to show that it receives, before a handshake begins (quic.Transport.VerifySourceAddress).
func (d *door) doubts(from net.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.of[addressKey(from)]
	doubts := d.unproven.taken >= (d.most+3)/4 || d.unproven.unheard >= (unheardOf(d.most)+3)/4 || of != nil && of.taken >= (d.mostOf+3)/4
	if doubts {
		d.n.Retries++
	}
	return doubts
}

// busy says that a handshake that begins now would soon be refused.
func (d *door) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all.taken >= d.most-d.most/4 || d.all.unheard >= max(d.most/16, 1)
}

// unheardOf is how many of so many places may wait for the hub.
func unheardOf(most int) int { return max(most/8, 1) }

func (d *door) begin(from net.Addr, proven bool) (*attempt, error) {
	a := &attempt{d: d, from: addressKey(from), proven: proven}
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.of[a.from]
	if of == nil {
		of = &places{}
	}
	switch {
	case d.all.taken >= d.most || d.all.unheard >= unheardOf(d.most):
		d.n.Refused++
	case of.taken >= d.mostOf || of.unheard >= unheardOf(d.mostOf):
		d.n.Crowded++
	default:
		d.n.Begun++
		d.of[a.from] = of
		a.count(func(p *places) { p.taken++; p.unheard++ })
		return a, nil
	}
	if now := time.Now(); now.Sub(d.warned) >= time.Minute {
		d.warned = now
		d.log.Warn("handshakes of nodes are refused, they come again later", "under_way", d.all.taken, "not_looked_at", d.all.unheard, "of_this_address", of.taken,
			"remote", from.String(), "refused_until_now", d.n.Refused+d.n.Crowded)
	}
	return nil, errBusy
}

// quicAttempt is quic.Transport.ConnContext.
func (d *door) quicAttempt(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	a, err := d.begin(info.RemoteAddr, info.AddrVerified)
	if err != nil {
		return nil, err
	}
	a.stop = context.AfterFunc(ctx, func() { a.end(context.Cause(ctx)) })
	return context.WithValue(ctx, attemptKey{}, a), nil
}

// watch makes conf tell when the hub looks at the first message of a handshake.
func (d *door) watch(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	next := conf.GetConfigForClient
	conf.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if a, ok := h.Context().Value(attemptKey{}).(*attempt); ok {
			a.look()
		}
		if next == nil {
			return nil, nil
		}
		return next(h)
	}
	return conf
}

// count changes all that a is counted in. Called with door.mu held, like hear.
func (a *attempt) count(change func(*places)) {
	change(&a.d.all)
	change(a.d.of[a.from])
	if !a.proven {
		change(&a.d.unproven)
	}
}

func (a *attempt) hear() {
	if !a.heard {
		a.heard = true
		a.count(func(p *places) { p.unheard-- })
	}
}

// look says that the hub has got to this handshake: from now on it waits for the node.
func (a *attempt) look() {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	a.hear()
}

// end ends the handshake: nil when it is over and the node proved, else why it failed.
func (a *attempt) end(err error) {
	d := a.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if a.over {
		return
	}
	a.over = true
	a.hear()
	a.count(func(p *places) { p.taken-- })
	if d.of[a.from].taken == 0 {
		delete(d.of, a.from)
	}
	switch {
	case err == nil:
		d.n.Ended++
	case isTimeout(err) || errors.Is(err, context.DeadlineExceeded):
		d.n.TimedOut++
	default:
		d.n.Failed++
	}
}

// proved notes that the handshake of a connection is over. Others than those of a door are nothing to it.
func proved(c carrier) {
	if a, ok := c.Context().Value(attemptKey{}).(*attempt); ok {
		if a.stop != nil {
			a.stop()
		}
		a.end(nil)
	}
}

// Door counts the handshakes since the hub's start.
func (s *Server) Door() Door {
	s.door.mu.Lock()
	defer s.door.mu.Unlock()
	n := s.door.n
	n.UnderWay = int64(s.door.all.taken)
	return n
}
