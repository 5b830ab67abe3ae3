package mqtt_test

import (
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"tailrace/edge/mqtt"
)

// countBackend copies each publish into an arena and calls done from one committer
// goroutine: the shape of the real one without the disk, and without allocations.
type countBackend struct {
	mu    sync.Mutex
	cond  *sync.Cond
	queue []*countBurst
	spare []*countBurst
	pool  sync.Pool
	state map[string][]byte
}

type countBurst struct {
	b     *countBackend
	arena []byte
	done  func(error)
}

func newCountBackend() *countBackend {
	b := &countBackend{state: map[string][]byte{}}
	b.cond = sync.NewCond(&b.mu)
	b.pool.New = func() any { return &countBurst{b: b} }
	go func() {
		for {
			b.mu.Lock()
			for len(b.queue) == 0 {
				b.cond.Wait()
			}
			q := b.queue
			b.queue = b.spare[:0]
			b.mu.Unlock()
			for _, x := range q {
				done := x.done
				x.arena, x.done = x.arena[:0], nil
				b.pool.Put(x)
				done(nil)
			}
			b.spare = q
		}
	}()
	return b
}

func (b *countBackend) Authenticate(*mqtt.Client, string, []byte, *x509.Certificate) error {
	return nil
}
func (b *countBackend) Begin(*mqtt.Client) mqtt.Burst                  { return b.pool.Get().(*countBurst) }
func (b *countBackend) Load(mqtt.StateKind, func(string, []byte) bool) {}
func (b *countBackend) Get(mqtt.StateKind, string) ([]byte, bool)      { return nil, false }
func (x *countBurst) Add(p *mqtt.Publish) error {
	x.arena = append(append(x.arena, p.Topic...), p.Payload...)
	return nil
}
func (x *countBurst) Window(string, []byte)                   {}
func (x *countBurst) SetState(mqtt.StateKind, string, []byte) {}
func (x *countBurst) Commit(done func(error)) {
	x.done = done
	x.b.mu.Lock()
	x.b.queue = append(x.b.queue, x)
	x.b.cond.Signal()
	x.b.mu.Unlock()
}

// BenchmarkPublish is the publish path over loopback TCP: clients x window, 120
// bytes, QoS 1. The generator runs in the same process and allocates nothing, so
// allocs/op is the server's.
func BenchmarkPublish(b *testing.B) {
	for _, c := range []struct{ v, clients, window int }{{4, 1, 1}, {4, 1, 20}, {4, 50, 20}, {5, 50, 20}, {4, 500, 20}} {
		for _, persistent := range []bool{false, true} {
			b.Run(fmt.Sprintf("v=%d/clients=%d/window=%d/persistent=%v", c.v, c.clients, c.window, persistent), func(b *testing.B) {
				benchPublish(b, byte(c.v), c.clients, c.window, persistent)
			})
		}
	}
}

// TestPublishAllocatesNothing: on the steady path a publish costs no allocation
// beyond the backend's arena, MQTT 5 with an alias and with properties included.
func TestPublishAllocatesNothing(t *testing.T) {
	if raceDetector {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	be := newCountBackend()
	s, err := mqtt.NewServer(mqtt.Config{Backend: be, State: be})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l, mqtt.ListenerOptions{})
	defer s.Shutdown(t.Context())
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.Write(connect(5, opts{id: "a", persistent: true}))
	if _, err := nc.Read(make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	user := append(append([]byte{0x26}, str("unit")...), str("kW")...)
	var out []byte
	for i := range uint16(20) {
		switch i % 4 {
		case 0:
			out = append(out, publish(5, 1, i+1, "site/WTG01/WGEN1/Spd", "12.5")...)
		case 1:
			out = append(out, aliased(i+1, "site/WTG01/WROT1/Spd", 1, "12.5")...)
		case 2:
			out = append(out, aliased(i+1, "", 1, "12.6")...)
		case 3:
			out = append(out, frame(0x32, str("site/WTG02/x"), u16(i+1), props(5, user), []byte("1"))...)
		}
	}
	acks := make([]byte, 80)
	round := func() {
		if _, err := nc.Write(out); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(nc, acks); err != nil {
			t.Fatal(err)
		}
	}
	per := testing.AllocsPerRun(2000, round) / 20
	t.Logf("%.3f allocations per publish", per)
	if per >= 0.02 { // one for a burst of 20 is 0.05
		t.Errorf("%.3f allocations per publish", per)
	}
}

func benchPublish(b *testing.B, v byte, clients, window int, persistent bool) {
	be := newCountBackend()
	s, err := mqtt.NewServer(mqtt.Config{Backend: be, State: be})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go s.Serve(l, mqtt.ListenerOptions{})
	defer s.Shutdown(b.Context())
	payload := make([]byte, 120)
	var conns []net.Conn
	for i := range clients {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer nc.Close()
		nc.Write(connect(v, opts{id: fmt.Sprint(i), persistent: persistent}))
		ack := make([]byte, 1024)
		if _, err := nc.Read(ack); err != nil {
			b.Fatal(err)
		}
		conns = append(conns, nc)
	}
	rounds := b.N/(clients*window) + 1
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, nc := range conns {
		var out []byte
		for w := range window {
			out = append(out, publish(v, 1, uint16(w+1), fmt.Sprintf("site/WTG%02d/WGEN1/Spd", i), string(payload))...)
		}
		acks := make([]byte, 4*window)
		wg.Go(func() {
			for range rounds {
				if _, err := nc.Write(out); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(nc, acks); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(rounds*clients*window)/b.Elapsed().Seconds(), "msgs/s")
}
