package rawload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"tailrace/firmware-sim/ledger"
)

// client is one connection after the other of one client id. All fields belong
// to the goroutine of run.
type client struct {
	l       *Load
	c       *Config
	id      string
	index   int
	make    *payloads
	session *ledger.Session
	rng     *rand.Rand
	hists   []Hist // by phase
	size    int
	err     error

	// Invariant: head ≤ next ≤ head+window. Sequences in [head, next) are in flight.
	head, next uint64
	sentAt     []int64 // by sequence modulo len; nanoseconds since base
	early      []bool  // acknowledged before an older one
	received   []bool  // QoS 2: the server has answered PUBREC, PUBCOMP is open; by sequence modulo len
	base       time.Time
	window     int

	wbuf   []byte
	rels   []byte // PUBRELs to write
	hashes []uint32
	rbuf   [maxInbound]byte
	have   int // bytes in rbuf
}

func (c *client) run(send, hard context.Context, ready func()) error {
	c.base = time.Now()
	first := true
	defer func() {
		if first {
			ready()
		}
		if n := int(c.next - c.head); n > 0 && c.c.QoS > 0 {
			c.session.Unknown(c.head, n)
		}
	}()
	backOff := c.c.BackOffMin
	for {
		conn, present, err := c.connect(hard, send)
		if err == nil {
			if !first {
				c.l.reconnects.Add(1)
			}
			c.l.connected.Add(1)
			wasFirst := first
			if first {
				first = false
				ready()
				select {
				case <-c.l.started:
				case <-hard.Done():
				}
				c.base = time.Now() // Rate counts from here, not from the dial
			}
			backOff = c.c.BackOffMin
			err = c.serve(send, hard, conn, present, wasFirst)
			c.l.connected.Add(-1)
			conn.Close()
			if err == nil {
				return nil
			}
		}
		if n := int(c.next - c.head); n > 0 && c.c.QoS > 0 {
			c.session.Unknown(c.head, n)
		}
		if c.finished(send) {
			return nil
		}
		if !c.c.Reconnect || errors.Is(err, ErrRefused) || hard.Err() != nil || (first && send.Err() != nil) {
			return err
		}
		wait := time.Duration(c.rng.Int64N(int64(backOff))) + 1 // full jitter
		backOff = min(2*backOff, c.c.BackOffMax)
		select {
		case <-time.After(wait):
		case <-hard.Done():
			return err
		}
	}
}

// finished: nothing is in flight and nothing more will be sent.
func (c *client) finished(send context.Context) bool {
	return c.head == c.next && (send.Err() != nil || c.c.Count > 0 && c.next > uint64(c.c.Count))
}

func (c *client) connect(hard, send context.Context) (net.Conn, bool, error) {
	select {
	case c.l.dials <- struct{}{}:
		defer func() { <-c.l.dials }()
	case <-hard.Done():
		return nil, false, hard.Err()
	}
	conn, err := c.c.Dial(hard)
	if err != nil {
		return nil, false, err
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(connectPacket(c.c, c.id)); err != nil {
		conn.Close()
		return nil, false, fmt.Errorf("send CONNECT: %w", err)
	}
	ack, err := readConnack(conn, c.c.Version)
	if err == nil && ack.code != 0 {
		err = fmt.Errorf("%w: CONNACK code %#x", ErrRefused, ack.code)
		if ack.code == 3 || ack.code == 0x88 || ack.code == 0x89 || ack.code == 0x97 { // unavailable, busy, quota: later
			err = fmt.Errorf("server unavailable: CONNACK code %#x", ack.code)
		}
	}
	if err != nil {
		conn.Close()
		return nil, false, err
	}
	_ = conn.SetDeadline(time.Time{})
	c.window = min(c.c.Window, ack.receiveMaximum)
	c.have = 0
	return conn, ack.present, nil
}

// serve publishes on one connection. nil: all done.
func (c *client) serve(send, hard context.Context, conn net.Conn, present, first bool) error {
	// A blocked read is woken when sending ends and when waiting for acks ends.
	defer context.AfterFunc(send, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	defer context.AfterFunc(hard, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if c.c.QoS == 0 {
		return c.serve0(send, hard, conn)
	}
	if err := c.resume(conn, present, first); err != nil {
		return err
	}
	for {
		due, err := c.refill(send, conn)
		if err != nil {
			return err
		}
		if c.finished(send) {
			_, _ = conn.Write([]byte{typeDisconnect, 0}) // MQTT 5 allows the short form, 3.14.2.1
			return nil
		}
		if err := hard.Err(); err != nil {
			return fmt.Errorf("%d publishes were not acknowledged in time", c.next-c.head)
		}
		stopped := send.Err() != nil
		switch {
		case stopped:
			_ = conn.SetReadDeadline(time.Time{})
			if hard.Err() != nil {
				continue // it ended between the check and the deadline
			}
		case c.c.Rate > 0:
			_ = conn.SetReadDeadline(due) // zero: the window is full, only an ack helps
			if send.Err() != nil {
				continue
			}
		}
		n, err := conn.Read(c.rbuf[c.have:])
		c.have += n
		if n > 0 {
			if err := c.parse(); err != nil {
				return err
			}
			if err := c.release(conn); err != nil {
				return err
			}
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("connection lost: %w", err)
		}
	}
}

// resume sends again what the last connection left unacknowledged, in order.
func (c *client) resume(conn net.Conn, present, first bool) error {
	n := int(c.next - c.head)
	if first {
		return nil
	}
	if !present && !c.c.CleanStart {
		c.l.lost.Add(1)
	}
	if n == 0 {
		return nil
	}
	if c.c.CleanStart {
		// The device keeps no session: what was in flight stays unknown.
		c.head = c.next
		clear(c.early)
		clear(c.received)
		return nil
	}
	c.wbuf, c.rels = c.wbuf[:0], c.rels[:0]
	now := int64(time.Since(c.base))
	for seq := c.head; seq < c.next; seq++ {
		if slot := seq % uint64(len(c.early)); c.early[slot] {
			continue
		} else if c.received[slot] {
			c.wbuf = appendPubrel(c.wbuf, packetID(seq)) // the message itself is never sent again, MQTT 5, 4.3.3
			continue
		}
		c.wbuf, _ = c.make.append(c.wbuf, seq, present) // DUP only within the session, MQTT 5, 4.4
		c.session.Resent(seq, 1, !present)
		c.sentAt[seq%uint64(len(c.sentAt))] = now
		c.l.resent.Add(1)
	}
	_, err := conn.Write(c.wbuf)
	return err
}

// refill writes as many publishes as window, count and rate allow in one write.
// The time returned is when the rate allows the next, if that is what stops it.
func (c *client) refill(send context.Context, conn net.Conn) (due time.Time, err error) {
	if send.Err() != nil {
		return due, nil
	}
	room := max(0, c.window-int(c.next-c.head)) // a new connection may have a smaller window
	if c.c.Count > 0 {
		room = int(min(uint64(c.c.Count)+1-c.next, uint64(room)))
	}
	if c.c.Rate > 0 {
		per := float64(c.c.Clients) / c.c.Rate // seconds between two publishes of this client
		phase := per * float64(c.index) / float64(c.c.Clients)
		allowed := uint64(max(0, (time.Since(c.base).Seconds()-phase)/per)) + 1
		if have := int(min(allowed+1-min(allowed+1, c.next), uint64(room))); have < room {
			room = have
			// A microsecond later, so that rounding cannot make it due and not allowed.
			due = c.base.Add(time.Duration((phase+per*float64(max(allowed, c.next-1)))*float64(time.Second)) + time.Microsecond)
		}
	}
	if room <= 0 {
		return due, nil
	}
	c.wbuf, c.hashes = c.wbuf[:0], c.hashes[:0]
	from := c.next
	for range room {
		var at int
		c.wbuf, at = c.make.append(c.wbuf, c.next, false)
		if c.session != nil {
			c.hashes = append(c.hashes, ledger.Hash(c.wbuf[at:]))
		}
		if c.size <= 0 {
			c.size = len(c.wbuf) - at
		}
		c.next++
	}
	c.session.Intent(from, c.hashes...)
	now := int64(time.Since(c.base))
	for seq := from; seq < c.next; seq++ {
		c.sentAt[seq%uint64(len(c.sentAt))] = now
	}
	c.l.published.Add(int64(room))
	if _, err := conn.Write(c.wbuf); err != nil {
		return due, fmt.Errorf("connection lost: %w", err)
	}
	return due, nil
}

// parse handles the packets in rbuf and keeps an incomplete rest.
func (c *client) parse() error {
	b := c.rbuf[:c.have]
	now, phase := int64(time.Since(c.base)), c.l.phase.Load()
	run, runFrom, acked := 0, uint64(0), int64(0)
	flush := func() {
		c.session.Ack(runFrom, run)
		run = 0
	}
	defer func() {
		flush()
		c.l.acked.Add(acked)
		c.have = copy(c.rbuf[:], b)
	}()
	for {
		typ, body, rest, err := next(b)
		if errors.Is(err, errIncomplete) {
			return nil
		}
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case typePuback, typePubrec, typePubcomp:
			if len(body) < 2 {
				return fmt.Errorf("server sent packet type %#x without packet id", typ)
			}
			seq, ok := c.inFlight(binary.BigEndian.Uint16(body))
			if !ok || typ == typePubcomp && !c.received[seq%uint64(len(c.early))] || (typ == typePuback) != (c.c.QoS == 1) {
				return fmt.Errorf("server acknowledged packet id %d by packet type %#x, which is not in flight", binary.BigEndian.Uint16(body), typ)
			}
			slot := seq % uint64(len(c.early))
			again := c.received[slot] // the message is the server's, and counted
			refused := typ != typePubcomp && len(body) > 2 && body[2] >= 0x80
			switch {
			case typ == typePubcomp:
			case refused && !again:
				c.session.Refused(seq, 1)
				c.l.refused.Add(1)
			case !again:
				if run > 0 && seq != runFrom+uint64(run) {
					flush()
				}
				if run == 0 {
					runFrom = seq
				}
				run++
				acked++
				c.hists[phase].Add(time.Duration(now-c.sentAt[slot]), 1)
			}
			if typ == typePubrec && !refused {
				c.received[slot] = true
				c.rels = appendPubrel(c.rels, packetID(seq))
				continue
			}
			c.early[slot], c.received[slot] = true, false
			for c.head < c.next && c.early[c.head%uint64(len(c.early))] {
				c.early[c.head%uint64(len(c.early))] = false
				c.head++
			}
		case typeDisconnect:
			code := byte(0)
			if len(body) > 0 {
				code = body[0]
			}
			return fmt.Errorf("server sent DISCONNECT with reason %#x", code)
		case typePingresp:
		default:
			return fmt.Errorf("server sent packet type %#x to a publisher", typ)
		}
	}
}

// release writes the PUBRELs that are due.
func (c *client) release(conn net.Conn) error {
	if len(c.rels) == 0 {
		return nil
	}
	_, err := conn.Write(c.rels)
	c.rels = c.rels[:0]
	if err != nil {
		return fmt.Errorf("connection lost: %w", err)
	}
	return nil
}

// inFlight finds the sequence of a packet id in [head, next).
func (c *client) inFlight(pid uint16) (uint64, bool) {
	if pid == 0 {
		return 0, false
	}
	d := (uint64(pid) + 65535 - uint64(packetID(c.head))) % 65535
	seq := c.head + d
	if seq >= c.next || c.early[seq%uint64(len(c.early))] {
		return 0, false
	}
	return seq, true
}

// serve0 publishes at QoS 0: a PINGREQ after every 1,024 messages, and its answer
// before the next, tells that the server has taken them.
func (c *client) serve0(send, hard context.Context, conn net.Conn) error {
	const burst, perPing = 64, 1024
	for {
		from := c.next
		for c.next-from < perPing && send.Err() == nil && (c.c.Count == 0 || c.next <= uint64(c.c.Count)) {
			c.wbuf = c.wbuf[:0]
			n := uint64(burst)
			if c.c.Count > 0 {
				n = min(n, uint64(c.c.Count)+1-c.next)
			}
			if c.c.Rate > 0 {
				n = 1
				at := c.base.Add(time.Duration(float64(c.next) * float64(c.c.Clients) / c.c.Rate * float64(time.Second)))
				select {
				case <-time.After(time.Until(at)):
				case <-send.Done():
					n = 0
				}
			}
			c.hashes = c.hashes[:0]
			first := c.next
			for range n {
				var at int
				c.wbuf, at = c.make.append(c.wbuf, c.next, false)
				if c.session != nil {
					c.hashes = append(c.hashes, ledger.Hash(c.wbuf[at:]))
				}
				c.next++
			}
			c.session.Intent(first, c.hashes...)
			if _, err := conn.Write(c.wbuf); err != nil {
				c.head = c.next
				return fmt.Errorf("connection lost: %w", err)
			}
			c.l.published.Add(int64(n))
		}
		c.head = c.next // QoS 0 is never sent again
		if _, err := conn.Write([]byte{0xc0, 0}); err != nil {
			return fmt.Errorf("connection lost: %w", err)
		}
		for {
			_ = conn.SetReadDeadline(time.Time{})
			if hard.Err() != nil {
				return errors.New("no PINGRESP in time")
			}
			n, err := conn.Read(c.rbuf[c.have:])
			c.have += n
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("connection lost: %w", err)
			}
			if c.have >= 2 {
				break
			}
		}
		if c.rbuf[0] != typePingresp {
			return fmt.Errorf("server sent packet type %#x to a publisher", c.rbuf[0])
		}
		c.have = 0
		c.l.acked.Add(int64(c.next - from)) // taken, not stored: QoS 0 has no better word
		if c.finished(send) {
			_, _ = conn.Write([]byte{typeDisconnect, 0})
			return nil
		}
	}
}
