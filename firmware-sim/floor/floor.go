// Package floor is the bare publish path: the least a server must do to accept
// MQTT 3.1.1 QoS 1 durably. It parses, collects what arrives, writes and syncs it
// once for all who wait, and then acknowledges. It has no sessions, no
// authentication, no validation beyond framing, and nobody can read what it
// stores. It is a measure for the cost of the path, not a product.
package floor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxPacket  = 64 << 10
	maxPending = 8 << 20 // bytes waiting for the disk; readers block above it
)

// Server writes to one file. Use it once.
type Server struct {
	File   *os.File
	NoSync bool // skip the sync: shows what it costs

	mu      sync.Mutex
	work    sync.Cond // pending is not empty, or closed
	room    sync.Cond // pending is below maxPending
	pending batch     // guarded by mu
	closed  bool      // guarded by mu

	Records, Commits, Bytes atomic.Int64
}

// batch is what one commit writes and whom it then answers.
type batch struct {
	data []byte
	acks []ack
}

type ack struct {
	conn net.Conn
	pubs []byte // PUBACK packets, ready to send
}

// Serve accepts connections until ctx ends or the disk fails.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	s.work.L, s.room.L = &s.mu, &s.mu
	var conns sync.Map
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	wg.Go(func() { failed <- s.commit() })
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var err error
	go func() {
		if e := <-failed; e != nil {
			failed <- e
			ln.Close()
		} else {
			failed <- nil
		}
	}()
	for {
		var c net.Conn
		if c, err = ln.Accept(); err != nil {
			break
		}
		conns.Store(c, true)
		wg.Go(func() {
			s.read(c)
			c.Close()
			conns.Delete(c)
		})
	}
	conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Broadcast()
	s.room.Broadcast()
	wg.Wait()
	if e := <-failed; e != nil {
		return e
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// read parses one connection; everything one read brought becomes one entry of the batch.
func (s *Server) read(c net.Conn) {
	buf := make([]byte, maxPacket)
	have := 0
	var data, pubs []byte
	for {
		n, err := c.Read(buf[have:])
		if err != nil {
			return
		}
		have += n
		b := buf[:have]
		data, pubs = data[:0], pubs[:0]
		records := 0
		for {
			typ, body, rest, err := split(b)
			if err != nil {
				return
			}
			if body == nil {
				break
			}
			b = rest
			switch typ >> 4 {
			case 1: // CONNECT → CONNACK, no session present
				if _, err := c.Write([]byte{0x20, 2, 0, 0}); err != nil {
					return
				}
			case 3:
				if len(body) < 2 {
					return
				}
				if typ>>1&3 == 1 {
					id := 2 + int(binary.BigEndian.Uint16(body))
					if len(body) < id+2 {
						return
					}
					pubs = append(pubs, 0x40, 2, body[id], body[id+1])
				}
				data = binary.BigEndian.AppendUint32(data, uint32(len(body)))
				data = append(data, body...)
				records++
			case 12:
				if _, err := c.Write([]byte{0xd0, 0}); err != nil {
					return
				}
			default:
				return
			}
		}
		have = copy(buf, b)
		if records > 0 && !s.add(c, data, pubs, records) {
			return
		}
	}
}

// split takes one packet off b; body is nil when it is not complete yet.
func split(b []byte) (typ byte, body, rest []byte, err error) {
	if len(b) < 2 {
		return 0, nil, b, nil
	}
	n, w := binary.Uvarint(b[1:min(len(b), 5)])
	if w < 0 || n > maxPacket-5 || (w == 0 && len(b) >= 5) {
		return 0, nil, nil, errors.New("packet too large")
	}
	if w == 0 || len(b) < 1+w+int(n) {
		return 0, nil, b, nil
	}
	end := 1 + w + int(n)
	return b[0], b[1+w : end : end], b[end:], nil
}

func (s *Server) add(c net.Conn, data, pubs []byte, records int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending.data) > maxPending && !s.closed {
		s.room.Wait()
	}
	if s.closed {
		return false
	}
	s.pending.data = append(s.pending.data, data...)
	if len(pubs) > 0 {
		s.pending.acks = append(s.pending.acks, ack{c, append([]byte(nil), pubs...)})
	}
	s.Records.Add(int64(records))
	s.work.Signal()
	return true
}

// commit writes and syncs all that waits, then acknowledges it.
func (s *Server) commit() error {
	var spare batch
	for {
		s.mu.Lock()
		for len(s.pending.data) == 0 && !s.closed {
			s.work.Wait()
		}
		if len(s.pending.data) == 0 {
			s.mu.Unlock()
			return nil
		}
		now := s.pending
		s.pending = batch{spare.data[:0], spare.acks[:0]}
		s.mu.Unlock()
		s.room.Broadcast()
		if _, err := s.File.Write(now.data); err != nil {
			return s.fail(fmt.Errorf("floor: write: %w", err))
		}
		if !s.NoSync {
			if err := datasync(s.File); err != nil {
				return s.fail(fmt.Errorf("floor: sync: %w", err))
			}
		}
		s.Commits.Add(1)
		s.Bytes.Add(int64(len(now.data)))
		for _, a := range now.acks {
			_ = a.conn.SetWriteDeadline(time.Now().Add(time.Second)) // one that does not read is cut off
			if _, err := a.conn.Write(a.pubs); err != nil && !errors.Is(err, io.ErrClosedPipe) {
				a.conn.Close()
			}
		}
		spare = now
	}
}

// fail ends the server: after a failed write or sync nothing is acknowledged any more.
func (s *Server) fail(err error) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.room.Broadcast()
	return err
}
