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
//   - At most an eighth of `most` wait for the hub itself to look at them: these tell a hub that is short of CPU from
//     nodes that are far away. A hub that keeps up has none.
//   - At most a quarter of either is of addresses that have not shown that they receive what is sent there. Beyond, a
//     node is asked to begin again with a token (QUIC's Retry), which costs the hub no state: whoever writes
//     others' addresses on his packets takes no place from them, and who has given up does not come back with it.
//
// What is too much is refused before it costs anything, and comes again later (busyFailures).
type door struct {
	most, mostOf int
	log          *slog.Logger

	mu       sync.Mutex // guards the following
	n        Door
	unproven int // of n.UnderWay: the address is not known to receive
	unheard  int // of n.UnderWay: the hub has not looked at the first message yet
	of       map[netip.Addr]int
	warned   time.Time
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
	return &door{most: most, mostOf: mostOf, log: log, of: map[netip.Addr]int{}}
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
	doubts := d.unproven >= (d.most+3)/4 || d.of[addressKey(from)] >= (d.mostOf+3)/4
	if doubts {
		d.n.Retries++
	}
	return doubts
}

// busy says that a handshake that begins now would soon be refused.
func (d *door) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int(d.n.UnderWay) >= d.most-d.most/4 || d.unheard >= max(d.most/16, 1)
}

func (d *door) begin(from net.Addr, proven bool) (*attempt, error) {
	a := &attempt{d: d, from: addressKey(from), proven: proven}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case int(d.n.UnderWay) >= d.most || d.unheard >= max(d.most/8, 1):
		d.n.Refused++
	case d.of[a.from] >= d.mostOf:
		d.n.Crowded++
	default:
		d.n.Begun++
		d.n.UnderWay++
		d.unheard++
		d.of[a.from]++
		if !proven {
			d.unproven++
		}
		return a, nil
	}
	if now := time.Now(); now.Sub(d.warned) >= time.Minute {
		d.warned = now
		d.log.Warn("handshakes of nodes are refused, they come again later", "under_way", d.n.UnderWay, "not_looked_at", d.unheard, "of_this_address", d.of[a.from],
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
			d.mu.Lock()
			a.hear()
			d.mu.Unlock()
		}
		if next == nil {
			return nil, nil
		}
		return next(h)
	}
	return conf
}

// hear is called with door.mu held.
func (a *attempt) hear() {
	if !a.heard {
		a.heard = true
		a.d.unheard--
	}
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
	d.n.UnderWay--
	if d.of[a.from]--; d.of[a.from] == 0 {
		delete(d.of, a.from)
	}
	if !a.proven {
		d.unproven--
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
	return s.door.n
}
