package rawload_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/firmware-sim/internal/brokertest"
	"tailrace/firmware-sim/ledger"
	"tailrace/firmware-sim/rawload"
)

// listen serves b on a loopback socket: net.Pipe has no buffer, and the generator
// writes a window before it reads, as it may on TCP.
func listen(t *testing.T, b *brokertest.Broker) func(context.Context) (net.Conn, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go b.Serve(ln)
	t.Cleanup(func() { ln.Close(); b.Cut(); b.Wait() })
	return rawload.DialTCP(ln.Addr().String(), nil)
}

func check(t *testing.T, b *brokertest.Broker, book *ledger.Book) ledger.Report {
	t.Helper()
	o := book.Observe("broker")
	for i, p := range b.Log() {
		o.SeePayload(p.Topic, p.Payload, ledger.Position{Offset: int64(i)})
	}
	if v := b.Violations(); len(v) > 0 {
		t.Fatalf("the generator broke the protocol: %q", v)
	}
	return o.Report()
}

func TestLoadArrivesOnceInOrderInBothVersions(t *testing.T) {
	bodies := [][]byte{[]byte(`"power_kw":919.5`), []byte(`"power_kw":null,"state":"run"`)}
	for _, version := range []byte{4, 5} {
		for _, c := range []rawload.Config{
			{QoS: 1, Clients: 3, Window: 7, Count: 200},
			{QoS: 1, Clients: 1, Window: 50, Count: 333, Bodies: bodies},
			{QoS: 1, Clients: 2, Window: 1, Count: 20, PayloadBytes: 300, Username: "u", Password: "p"},
			{QoS: 0, Clients: 2, Count: 3000},
		} {
			b := &brokertest.Broker{ReceiveMaximum: 5}
			book := ledger.New()
			c.Dial, c.Version, c.Ledger = listen(t, b), version, book
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			r, err := rawload.Run(ctx, c)
			stop()
			want := c.Count * int64(c.Clients)
			if err != nil || r.Failed != 0 || r.Acked != want || r.Published != want || r.Unknown != 0 {
				t.Fatalf("version %d: %+v %v", version, r, err)
			}
			rep := check(t, b, book)
			if !rep.OK() || rep.Delivered != uint64(want) {
				t.Fatalf("version %d %+v: %v", version, c, rep)
			}
			for _, p := range b.Log() {
				var m map[string]any
				if err := json.Unmarshal(p.Payload, &m); err != nil {
					t.Fatalf("payload is not JSON: %v: %s", err, p.Payload)
				}
				var compact bytes.Buffer
				if json.Compact(&compact, p.Payload); compact.String() != string(p.Payload) {
					t.Fatalf("payload has blanks: %s", p.Payload)
				}
				if c.Bodies == nil && len(p.Payload) != max(c.PayloadBytes, 120) {
					t.Fatalf("payload has %d bytes: %s", len(p.Payload), p.Payload)
				}
			}
		}
	}
}

// The server stores, hangs up before the ack, and knows the session: everything
// unacknowledged comes again, in order, with DUP and the same packet ids. A
// server that drops such re-sends has each record once; one that does not shows
// duplicates, and the ledger finds them.
func TestUnackedIsSentAgainWithDupOnAPersistentSession(t *testing.T) {
	for _, version := range []byte{4, 5} {
		for _, drops := range []bool{true, false} {
			var n atomic.Int64
			var last uint16
			b := &brokertest.Broker{}
			b.Decide = func(p brokertest.Publish) brokertest.Verdict {
				if p.Dup && drops && p.ID <= last {
					return brokertest.Verdict{NotKept: true}
				}
				last = p.ID
				if i := n.Add(1); i%40 == 0 {
					return brokertest.Verdict{NoAck: true, HangUp: true}
				}
				return brokertest.Verdict{}
			}
			book := ledger.New()
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			r, err := rawload.Run(ctx, rawload.Config{Dial: listen(t, b), Version: version, QoS: 1, Window: 9, Count: 500,
				Reconnect: true, BackOffMin: time.Millisecond, BackOffMax: 2 * time.Millisecond, Ledger: book})
			stop()
			if err != nil || r.Acked != 500 || r.Reconnects == 0 || r.Resent == 0 || r.SessionsLost != 0 {
				t.Fatalf("%+v %v", r, err)
			}
			rep := check(t, b, book)
			if rep.OK() != drops || rep.Lost != 0 || rep.OutOfOrder != 0 || (rep.Duplicate == 0) != drops {
				t.Fatalf("drops %v: %v", drops, rep)
			}
		}
	}
}

func TestAForgottenSessionIsSentAgainAsNew(t *testing.T) {
	var n atomic.Int64
	b := &brokertest.Broker{}
	dups := 0
	b.Decide = func(p brokertest.Publish) brokertest.Verdict {
		if p.Dup {
			dups++
		}
		if n.Add(1) == 50 {
			b.Forget()
			return brokertest.Verdict{NoAck: true, HangUp: true}
		}
		return brokertest.Verdict{}
	}
	book := ledger.New()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	r, err := rawload.Run(ctx, rawload.Config{Dial: listen(t, b), QoS: 1, Window: 9, Count: 100, Reconnect: true, Ledger: book})
	if err != nil || r.SessionsLost != 1 || dups != 0 {
		t.Fatalf("%+v %v, %d with DUP", r, err, dups)
	}
	if rep := check(t, b, book); !rep.OK() || rep.DoubledAllowed == 0 {
		t.Fatal(rep)
	}
}

func TestARefusalIsCountedAndNotSentAgain(t *testing.T) {
	b := &brokertest.Broker{Decide: func(p brokertest.Publish) brokertest.Verdict {
		if strings.Contains(string(p.Payload), `"seq":7,`) {
			return brokertest.Verdict{Code: 0x97}
		}
		return brokertest.Verdict{}
	}}
	book := ledger.New()
	r, err := rawload.Run(t.Context(), rawload.Config{Dial: listen(t, b), Version: 5, QoS: 1, Count: 20, Ledger: book})
	if err != nil || r.Refused != 1 || r.Acked != 19 {
		t.Fatalf("%+v %v", r, err)
	}
	if rep := check(t, b, book); !rep.OK() || rep.Refused != 1 {
		t.Fatal(rep)
	}
}

func TestSilenceIsUnknownAndEndsAfterDrain(t *testing.T) {
	b := &brokertest.Broker{Decide: func(p brokertest.Publish) brokertest.Verdict {
		return brokertest.Verdict{NoAck: p.ID > 10}
	}}
	book := ledger.New()
	r, err := rawload.Run(t.Context(), rawload.Config{Dial: listen(t, b), QoS: 1, Window: 5,
		Duration: 50 * time.Millisecond, Drain: 50 * time.Millisecond, Ledger: book})
	if err != nil || r.Acked != 10 || r.Unknown != 5 || r.Failed != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	if tot := book.Totals(); tot.Unknown != 5 || tot.Acked != 10 {
		t.Fatalf("%+v", tot)
	}
}

func TestRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &brokertest.Broker{}
		r, err := rawload.Run(t.Context(), rawload.Config{Dial: b.Dial, QoS: 1, Clients: 4, Window: 1, Rate: 100, Duration: 10 * time.Second})
		if err != nil || r.Acked < 990 || r.Acked > 1004 || r.Failed != 0 {
			t.Fatalf("%+v %v", r, err)
		}
		b.Wait()
	})
}

func TestConfigSaysAllThatIsWrong(t *testing.T) {
	_, err := rawload.New(rawload.Config{QoS: 3, Window: 70000, Topic: "a/#", PayloadBytes: 3, Rate: -1})
	for _, part := range []string{"dialer", "qos", "window", "topic", "payload", "rate"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not mention %s", err, part)
		}
	}
}

func TestARefusedConnectIsNotRepeated(t *testing.T) {
	b := &brokertest.Broker{RefuseConnect: func(string) byte { return 5 }}
	_, err := rawload.Run(t.Context(), rawload.Config{Dial: listen(t, b), QoS: 1, Count: 1, Reconnect: true})
	if !errors.Is(err, rawload.ErrRefused) {
		t.Fatal(err)
	}
}

func TestHistQuantilesAreCloseFromAbove(t *testing.T) {
	var h rawload.Hist
	for i := 1; i <= 10000; i++ {
		h.Add(time.Duration(i)*time.Microsecond, 1)
	}
	for q, want := range map[float64]time.Duration{.5: 5000, .99: 9900, 1: 10000} {
		got := h.Quantile(q) / time.Microsecond
		if got < want || float64(got) > 1.07*float64(want) {
			t.Errorf("quantile %v: %d, want %d", q, got, want)
		}
	}
	h.Add(100*time.Hour, 1) // does not panic
}
