package scenario

import (
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"
)

// wan is the link between node and hub: rate, delay, queue, loss, reordering, outage.
// It is a simnet.Router; all in simulated time.
type wan struct {
	simnet.PerfectRouter

	mu    sync.Mutex
	hub   string
	rng   *rand.Rand
	cond  conditions
	free  [2]time.Time // when the line is free again, node→hub and hub→node
	stats wanStats
}

// conditions of a link. The zero value is a perfect one.
type conditions struct {
	Rate    float64 // bits per second; 0 = no limit
	Delay   time.Duration
	Jitter  time.Duration // added at random: packets overtake each other
	Queue   int           // bytes; 0 = 128 KiB
	Loss    [2]float64    // node→hub, hub→node
	Down    [2]bool       // one-way outages included
	Corrupt float64       // one bit flipped on the way
}

type wanStats struct{ Sent, Lost, Dropped, Corrupted int64 }

func newWAN(hub string, seed uint64) *wan {
	return &wan{hub: hub, rng: rand.New(rand.NewPCG(seed, 3))}
}

func (l *wan) set(c conditions) {
	l.mu.Lock()
	l.cond = c
	l.mu.Unlock()
}

// socket is a UDP socket on the link that dies with its machine.
type socket struct {
	*simnet.SimConn
	dead atomic.Bool
}

// open binds an address. What it blocks when nobody reads is one packet's delivery.
func (l *wan) open(addr *net.UDPAddr) *socket {
	return &socket{SimConn: simnet.NewBlockingSimConn(addr, l)}
}

// kill is the death of the machine: nothing leaves it any more, nothing arrives.
func (s *socket) kill() {
	s.dead.Store(true)
	_ = s.Close()
}

func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	if s.dead.Load() {
		return len(b), nil
	}
	if u, ok := to.(*net.UDPAddr); ok && u.IP.To4() != nil { // simnet tells 4 bytes from 16
		to = &net.UDPAddr{IP: u.IP.To4(), Port: u.Port}
	}
	return s.SimConn.WriteTo(b, to)
}

// SendPacket implements simnet.Router.
func (l *wan) SendPacket(p simnet.Packet) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	dir := 0
	if p.From.String() == l.hub {
		dir = 1
	}
	l.stats.Sent++
	if l.cond.Down[dir] || l.rng.Float64() < l.cond.Loss[dir] {
		l.stats.Lost++
		return nil
	}
	now, n := time.Now(), len(p.Data)+28
	at := now
	if l.cond.Rate > 0 {
		queue := l.cond.Queue
		if queue == 0 {
			queue = 128 << 10
		}
		if l.free[dir].Before(now) {
			l.free[dir] = now
		}
		if int(l.free[dir].Sub(now).Seconds()*l.cond.Rate/8)+n > queue {
			l.stats.Dropped++
			return nil
		}
		l.free[dir] = l.free[dir].Add(time.Duration(float64(n) * 8e9 / l.cond.Rate))
		at = l.free[dir]
	}
	at = at.Add(l.cond.Delay)
	if l.cond.Jitter > 0 {
		at = at.Add(time.Duration(l.rng.Int64N(int64(l.cond.Jitter))))
	}
	if l.cond.Corrupt > 0 && l.rng.Float64() < l.cond.Corrupt {
		p.Data = append([]byte(nil), p.Data...)
		p.Data[l.rng.IntN(len(p.Data))] ^= 1 << l.rng.IntN(8)
		l.stats.Corrupted++
	}
	time.AfterFunc(at.Sub(now), func() { _ = l.PerfectRouter.SendPacket(p) })
	return nil
}
