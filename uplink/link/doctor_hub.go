package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tailrace/uplink/wire"
)

// A connection with alpnTest measures the path (Diagnose). It needs a node's
// certificate, and is no session: it displaces nothing and stores nothing. Its control
// stream carries messages of the protocol:
//
//	Heartbeat                answered by a Heartbeat
//	Command "name", token    gives the connection a name, 16 bytes
//	Command "poke", token    sends a Heartbeat on the connection of that name
//	Command "receive"        counts the bytes of the next data stream to its end; the answer is testCount
const alpnTest = "tailrace-test/1"

// Limits of tests, so that one costs the hub little.
const (
	testsAtOnce  = 16
	testLife     = 10 * time.Minute
	testMaxBytes = 64 << 20 // of one connection
)

// testCount is the body of the answer to "receive".
type testCount struct {
	Bytes int64 `cbor:"1,keyasint"`
	Nanos int64 `cbor:"2,keyasint"` // from the first byte to the last
}

// tests are the test connections of a Server.
type tests struct {
	mu     sync.Mutex
	count  int
	byName map[wire.ID]func(...wire.Message) // send on the control stream
}

func isTest(cs tls.ConnectionState) bool { return cs.NegotiatedProtocol == alpnTest }

// test serves one test connection.
func (s *Server) test(ctx context.Context, conn carrier) error {
	id, err := nodeOf(conn.tlsState())
	if err != nil {
		return &RefuseError{Code: wire.CodeAuth, Message: err.Error()}
	}
	t := &s.tests
	t.mu.Lock()
	if t.count >= testsAtOnce {
		t.mu.Unlock()
		return &RefuseError{Code: wire.CodeOverload, Message: "too many tests at once", RetryAfter: time.Minute}
	}
	t.count++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		t.count--
		t.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(ctx, testLife)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.close(wire.CodeShutdown, "the test took too long, or the hub stops") })()
	hctx, stop := context.WithTimeout(ctx, s.cfg.HelloTimeout)
	defer stop()
	st, err := conn.acceptControl(hctx)
	if err != nil {
		return err
	}
	s.cfg.Logger.Debug("test of the link", "node", id, "over", string(conn.transport()), "remote", conn.RemoteAddr().String())
	var wmu sync.Mutex
	send := func(ms ...wire.Message) {
		wmu.Lock()
		defer wmu.Unlock()
		_, _ = sendMessages(st, nil, ms) // the reader notices what is broken
	}
	left := int64(testMaxBytes)
	r := wire.NewReader(st)
	for {
		m, err := r.Read()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Heartbeat:
			if !m.Reply {
				send(&wire.Heartbeat{Sequence: m.Sequence, Sent: m.Sent, Reply: true, Clock: wire.Clock{UnixNano: time.Now().UnixNano(), Trusted: true}, Pad: make([]byte, wire.HeartbeatPad)})
			}
		case *wire.Command:
			res := wire.CommandResult{ID: m.ID}
			switch m.Name {
			case "name", "poke":
				var token wire.ID
				if token.UnmarshalBinary(m.Args) != nil {
					return fmt.Errorf("%w: token of %d bytes", wire.ErrMalformed, len(m.Args))
				}
				t.mu.Lock()
				to := t.byName[token]
				if m.Name == "name" && to == nil {
					if t.byName == nil {
						t.byName = map[wire.ID]func(...wire.Message){}
					}
					t.byName[token] = send
					defer func() {
						t.mu.Lock()
						delete(t.byName, token)
						t.mu.Unlock()
					}()
				}
				t.mu.Unlock()
				switch {
				case m.Name == "name" && to != nil:
					return fmt.Errorf("%w: a second name", wire.ErrMalformed)
				case m.Name == "poke" && to == nil:
					res.Error = "no such connection"
				case m.Name == "poke":
					go to(&wire.Heartbeat{Pad: make([]byte, wire.HeartbeatPad)})
				}
			case "receive":
				n, err := receiveAll(ctx, conn, left)
				if err != nil {
					return err
				}
				left -= n.Bytes
				if res.Body, err = cbor.Marshal(n); err != nil {
					return err
				}
			default:
				res.Error = "unknown test " + clip(m.Name)
			}
			send(&res)
		}
	}
}

// receiveAll counts what comes on the next data stream.
func receiveAll(ctx context.Context, conn carrier, most int64) (n testCount, err error) {
	st, err := conn.acceptData(ctx)
	if err != nil {
		return n, err
	}
	var first, last time.Time
	buf := make([]byte, 16<<10)
	for {
		k, err := st.Read(buf)
		if k > 0 {
			last = time.Now()
			if first.IsZero() {
				first = last
			}
			if n.Bytes += int64(k); n.Bytes > most {
				return n, fmt.Errorf("%w: a test of more than %d bytes", wire.ErrMalformed, int64(testMaxBytes))
			}
		}
		if err == io.EOF {
			n.Nanos = last.Sub(first).Nanoseconds()
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
