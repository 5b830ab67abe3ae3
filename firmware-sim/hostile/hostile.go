// Package hostile is what a node on an open network meets: sockets that say nothing,
// senders of a byte a second, guessed passwords, inventors of topics and client ids,
// and lengths of 256 MB that are claimed and never sent. It comes from many loopback
// addresses, so that limits by address can be seen to work.
package hostile

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Config of an attack. Rates are per second of all together; zero = none of this kind.
type Config struct {
	Target    string // host:port on loopback
	Addresses int    // attackers come from 127.0.0.2, 127.0.0.3, …, with an account from 127.0.1.2, …, silent and slow ones from 127.0.2.2, …; default 20
	Idle      int    // sockets that say nothing, opened again when closed
	Slow      int    // senders of one byte a second
	BadLogins int    // guessed passwords
	Topics    int    // publishes, each to a new topic, of clients with a password
	ClientIDs int    // logins, each with a new client id and a session that is kept
	Claims    int    // length claims of 256 MB, before and after login

	User, Password string // an account that has fallen into the wrong hands
}

// Result counts what was done; it tells that the attack took place.
type Result struct {
	Idle, Slow                                  int64 // sockets open at the most
	Refused, TimedOut                           int64 // of these: closed by the server at once, and later
	BadLogins, LetIn, Topics, ClientIDs, Claims int64 // LetIn: bad logins that were accepted
	DialFailed                                  int64
}

// And adds another attack: what was open at the most stays the most.
func (r Result) And(o Result) Result {
	return Result{max(r.Idle, o.Idle), max(r.Slow, o.Slow), r.Refused + o.Refused, r.TimedOut + o.TimedOut, r.BadLogins + o.BadLogins, r.LetIn + o.LetIn,
		r.Topics + o.Topics, r.ClientIDs + o.ClientIDs, r.Claims + o.Claims, r.DialFailed + o.DialFailed}
}

func (r Result) String() string {
	return fmt.Sprintf("%d idle and %d slow sockets at once (%d refused, %d ended later), %d bad logins, %d topics, %d client ids, %d claims", r.Idle, r.Slow, r.Refused, r.TimedOut, r.BadLogins, r.Topics, r.ClientIDs, r.Claims)
}

type attack struct {
	Config
	next                                        atomic.Int64
	idle, slow, idleMax, slowMax                atomic.Int64
	badLogins, letIn, topics, ids, claims, fail atomic.Int64
	refused, timedOut                           atomic.Int64
}

// Run attacks until ctx ends.
func Run(ctx context.Context, c Config) Result {
	if c.Addresses == 0 {
		c.Addresses = 20
	}
	a := &attack{Config: c}
	var wg sync.WaitGroup
	for range c.Idle {
		wg.Go(func() { a.stay(ctx, &a.idle, &a.idleMax, 0) })
	}
	for range c.Slow {
		wg.Go(func() { a.stay(ctx, &a.slow, &a.slowMax, time.Second) })
	}
	a.rate(ctx, &wg, c.BadLogins, func(n int64) {
		a.once(ctx, outside, func(nc net.Conn) {
			code, err := handshake(nc, fmt.Sprintf("guess-%d", n), fmt.Sprintf("plc-%d", n%500), fmt.Sprintf("pw-%d", n), true)
			a.badLogins.Add(1)
			if err == nil && code == 0 {
				a.letIn.Add(1)
			}
		})
	})
	a.rate(ctx, &wg, c.ClientIDs, func(n int64) {
		a.once(ctx, inside, func(nc net.Conn) {
			if _, err := handshake(nc, fmt.Sprintf("%s-%d", c.User, n), c.User, c.Password, false); err == nil {
				a.ids.Add(1)
			}
		})
	})
	a.rate(ctx, &wg, c.Claims, func(n int64) {
		a.once(ctx, inside, func(nc net.Conn) {
			head := byte(0x10)
			if n%2 == 0 {
				if code, err := handshake(nc, fmt.Sprintf("%s-claim-%d", c.User, n%10), c.User, c.Password, true); err != nil || code != 0 {
					return
				}
				head = 0x30
			}
			nc.Write([]byte{head, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4})
			nc.Read(make([]byte, 16))
			a.claims.Add(1)
		})
	})
	const flooders = 10
	for f := range flooders {
		if c.Topics == 0 {
			break
		}
		wg.Go(func() {
			a.again(ctx, inside, 500*time.Millisecond, func(nc net.Conn) time.Duration {
				a.flood(ctx, nc, f, c.Topics/flooders)
				return 500 * time.Millisecond
			})
		})
	}
	wg.Wait()
	return Result{a.idleMax.Load(), a.slowMax.Load(), a.refused.Load(), a.timedOut.Load(), a.badLogins.Load(), a.letIn.Load(), a.topics.Load(), a.ids.Load(), a.claims.Load(), a.fail.Load()}
}

// outside is where those without an account come from, inside those with one: an address
// that has guessed too often does not get in with the right password either.
const (
	outside byte = 0
	inside  byte = 1
	silent  byte = 2 // idle and slow ones
)

func (a *attack) dial(ctx context.Context, net4 byte) (net.Conn, error) {
	n := a.next.Add(1)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, net4, byte(2+n%int64(a.Addresses)))}, Timeout: 10 * time.Second}
	nc, err := d.DialContext(ctx, "tcp", a.Target)
	if err != nil {
		if ctx.Err() == nil {
			a.fail.Add(1)
		}
		return nil, err
	}
	nc.(*net.TCPConn).SetLinger(0) // no TIME_WAIT: ports are few
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc, nil
}

func (a *attack) once(ctx context.Context, net4 byte, f func(net.Conn)) {
	nc, err := a.dial(ctx, net4)
	if err != nil {
		return
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	f(nc)
}

// again opens a new socket when one has ended, as long after it as f says, or soon when none
// could be opened.
func (a *attack) again(ctx context.Context, net4 byte, soon time.Duration, f func(net.Conn) time.Duration) {
	for ctx.Err() == nil {
		wait := soon
		a.once(ctx, net4, func(nc net.Conn) { wait = f(nc) })
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// rate starts f so many times a second on a pool: a server that answers late does not
// make the attack larger than its bound.
func (a *attack) rate(ctx context.Context, wg *sync.WaitGroup, perSecond int, f func(n int64)) {
	if perSecond == 0 {
		return
	}
	jobs := make(chan int64)
	for range min(perSecond, 200) {
		wg.Go(func() {
			for n := range jobs {
				f(n)
			}
		})
	}
	wg.Go(func() {
		defer close(jobs)
		begin := time.Now()
		t := time.NewTicker(5 * time.Millisecond)
		defer t.Stop()
		for n := int64(0); ; {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			for due := int64(time.Since(begin).Seconds() * float64(perSecond)); n < due; n++ {
				select {
				case jobs <- n:
				case <-ctx.Done():
					return
				}
			}
		}
	})
}

// stay keeps one socket open all the time: one that the server ends is opened again soon,
// and one that it does not take after some seconds, or refusals would be all that there is.
func (a *attack) stay(ctx context.Context, open, most *atomic.Int64, every time.Duration) {
	const soon = 100 * time.Millisecond
	a.again(ctx, silent, soon, func(nc net.Conn) time.Duration {
		begin := time.Now()
		a.hold(ctx, nc, open, most, every)
		switch {
		case ctx.Err() != nil:
		case time.Since(begin) < time.Second:
			a.refused.Add(1)
			return 5 * time.Second
		default:
			a.timedOut.Add(1)
		}
		return soon
	})
}

// hold keeps a socket open, saying nothing or a byte of a CONNECT now and then.
func (a *attack) hold(ctx context.Context, nc net.Conn, open, most *atomic.Int64, every time.Duration) {
	if n := open.Add(1); n > most.Load() {
		most.Store(n)
	}
	defer open.Add(-1)
	b := make([]byte, 1)
	if every == 0 {
		nc.Read(b)
		return
	}
	p := connect("slow", "plc-1", "x", true)
	for i := 0; i < len(p) && ctx.Err() == nil; i++ {
		if _, err := nc.Write(p[i : i+1]); err != nil {
			return
		}
		nc.SetReadDeadline(time.Now().Add(every))
		if _, err := nc.Read(b); err != nil {
			if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
				return
			}
		}
	}
}

// flood publishes with QoS 1 to ever new topics.
func (a *attack) flood(ctx context.Context, nc net.Conn, f, perSecond int) {
	if code, err := handshake(nc, fmt.Sprintf("%s-flood-%d", a.User, f), a.User, a.Password, true); err != nil || code != 0 {
		return
	}
	go func() { // answers are read and thrown away
		b := make([]byte, 4096)
		for {
			if _, err := nc.Read(b); err != nil {
				nc.Close()
				return
			}
		}
	}()
	t := time.NewTicker(time.Second / time.Duration(max(1, perSecond)))
	defer t.Stop()
	for id := uint16(1); ; id = max(1, id+1) {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		topic := fmt.Sprintf("flood/%d/%d", f, a.topics.Add(1))
		p := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
		p = binary.BigEndian.AppendUint16(append(p, topic...), id)
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := nc.Write(append([]byte{0x32, byte(len(p))}, p...)); err != nil {
			return
		}
	}
}

// connect is a CONNECT of MQTT 3.1.1.
func connect(id, user, password string, clean bool) []byte {
	flags := byte(0xC0)
	if clean {
		flags |= 2
	}
	b := append([]byte("\x00\x04MQTT\x04"), flags, 0, 60)
	for _, s := range []string{id, user, password} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	return append(binary.AppendUvarint([]byte{0x10}, uint64(len(b))), b...)
}

func handshake(nc net.Conn, id, user, password string, clean bool) (code byte, err error) {
	if _, err := nc.Write(connect(id, user, password, clean)); err != nil {
		return 0, err
	}
	ack := make([]byte, 4)
	for n := 0; n < len(ack); {
		k, err := nc.Read(ack[n:])
		if n += k; err != nil {
			return 0, err
		}
	}
	return ack[3], nil
}

// Login reports how long one login takes, from CONNECT to a good CONNACK.
func Login(ctx context.Context, target, id, user, password string) (time.Duration, error) {
	begin := time.Now()
	nc, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", target)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	nc.SetDeadline(begin.Add(20 * time.Second))
	code, err := handshake(nc, id, user, password, true)
	if err == nil && code != 0 {
		err = fmt.Errorf("CONNACK code %d", code)
	}
	return time.Since(begin), err
}
