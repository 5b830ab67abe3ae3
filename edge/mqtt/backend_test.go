package mqtt_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"tailrace/edge/mqtt"
)

// memBackend is a Backend and State in memory. Commits run on one goroutine, in
// order; a test can hold them back, fail them, and look at what is durable.
type memBackend struct {
	auth func(c *mqtt.Client, user string, pw []byte, cert *x509.Certificate) error
	add  func(p *mqtt.Publish) error
	sub  func(c *mqtt.Client, filter string) error

	mu      sync.Mutex
	cond    *sync.Cond
	queue   []*memBurst
	held    bool // nothing becomes durable
	step    int  // while held: so many commits may pass
	fail    error
	last    bool // the newest burst becomes durable first, as with several logs
	records []memRecord
	state   map[mqtt.StateKind]map[string][]byte
	commits int
	closed  bool
	done    chan struct{}
}

type memRecord struct {
	client, topic, payload string
	qos                    byte
	retain, dup, will      bool
	user                   string
}

type memBurst struct {
	b     *memBackend
	c     *mqtt.Client
	recs  []memRecord
	sets  []func(b *memBackend)
	marks map[int]*mqtt.Position
	done  func(error)
}

func newBackend() *memBackend {
	b := &memBackend{state: map[mqtt.StateKind]map[string][]byte{mqtt.KindSession: {}, mqtt.KindRetained: {}, mqtt.KindWindow: {}, mqtt.KindCursor: {}}, done: make(chan struct{})}
	b.cond = sync.NewCond(&b.mu)
	go b.commit()
	return b
}

// restart is a new backend with what is durable in b, as after kill -9.
func (b *memBackend) restart() *memBackend {
	b.close()
	n := newBackend()
	b.mu.Lock()
	defer b.mu.Unlock()
	n.records = append(n.records, b.records...)
	for k, m := range b.state {
		for key, v := range m {
			n.state[k][key] = v
		}
	}
	n.auth, n.add, n.sub = b.auth, b.add, b.sub
	return n
}

func (b *memBackend) close() {
	b.mu.Lock()
	b.closed = true
	b.cond.Broadcast()
	b.mu.Unlock()
	<-b.done
}

func (b *memBackend) commit() {
	defer close(b.done)
	for {
		b.mu.Lock()
		for !b.closed && (len(b.queue) == 0 || b.held && b.step == 0) {
			b.cond.Wait()
		}
		if b.closed {
			q := b.queue
			b.queue = nil
			b.mu.Unlock()
			for _, x := range q {
				x.done(errors.New("backend closed"))
			}
			return
		}
		i := 0
		if b.last {
			i = len(b.queue) - 1
		}
		x := b.queue[i]
		b.queue = append(b.queue[:i:i], b.queue[i+1:]...)
		if b.step > 0 {
			b.step--
		}
		err := b.fail
		if err == nil {
			for i, at := range x.marks {
				*at = mqtt.Position{Part: 7, Offset: int64(len(b.records) + i)}
			}
			b.records = append(b.records, x.recs...)
			for _, set := range x.sets {
				set(b)
			}
			b.commits++
		}
		b.mu.Unlock()
		x.done(err)
		b.mu.Lock()
		b.cond.Broadcast()
		b.mu.Unlock()
	}
}

func (b *memBackend) hold(v bool) {
	b.mu.Lock()
	b.held = v
	b.cond.Broadcast()
	b.mu.Unlock()
}

func (b *memBackend) pass(n int) {
	b.mu.Lock()
	b.step += n
	b.cond.Broadcast()
	b.mu.Unlock()
}

func (b *memBackend) failWith(err error) {
	b.mu.Lock()
	b.fail = err
	b.mu.Unlock()
}

// waiting returns after n bursts wait to become durable.
func (b *memBackend) waiting(n int) {
	b.mu.Lock()
	for len(b.queue) < n {
		b.cond.Wait()
	}
	b.mu.Unlock()
}

// payloads are the durable payloads, in order.
func (b *memBackend) payloads() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := []string{}
	for _, r := range b.records {
		out = append(out, r.payload)
	}
	return out
}

func (b *memBackend) all() []memRecord {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]memRecord(nil), b.records...)
}

func (b *memBackend) Authenticate(c *mqtt.Client, user string, pw []byte, cert *x509.Certificate) error {
	if b.auth != nil {
		return b.auth(c, user, pw, cert)
	}
	return nil
}

func (b *memBackend) AuthorizeSubscribe(c *mqtt.Client, filter string, qos byte) error {
	if b.sub != nil {
		return b.sub(c, filter)
	}
	return nil
}

func (b *memBackend) Begin(c *mqtt.Client) mqtt.Burst { return &memBurst{b: b, c: c} }

func (x *memBurst) Add(p *mqtt.Publish) error {
	if p.Name != string(p.Topic) || *p.Route != nil && (*p.Route).(string) != p.Name {
		panic(fmt.Sprintf("topic %q, name %q, route %v", p.Topic, p.Name, *p.Route))
	}
	*p.Route = p.Name
	if x.b.add != nil {
		if err := x.b.add(p); err != nil {
			return err
		}
	}
	r := memRecord{client: x.c.ID, topic: p.Name, payload: string(p.Payload), qos: p.QoS, retain: p.Retain, dup: p.Dup, will: p.Will}
	if p.Props != nil {
		for _, u := range p.Props.User {
			r.user += string(u.Key) + "=" + string(u.Value) + ";"
		}
	}
	x.recs = append(x.recs, r)
	return nil
}

func (x *memBurst) Window(id string, delta []byte) {
	d := append([]byte(nil), delta...)
	x.sets = append(x.sets, func(b *memBackend) {
		b.state[mqtt.KindWindow][id] = mqtt.FoldWindow(b.state[mqtt.KindWindow][id], d)
	})
}

func (x *memBurst) SetState(k mqtt.StateKind, key string, v []byte) {
	var cp []byte
	if v != nil {
		cp = append([]byte{}, v...)
	}
	x.sets = append(x.sets, func(b *memBackend) {
		if cp == nil {
			delete(b.state[k], key)
		} else {
			b.state[k][key] = cp
		}
	})
}

func (x *memBurst) Commit(done func(error)) {
	x.done = done
	x.b.mu.Lock()
	defer x.b.mu.Unlock()
	if x.b.closed {
		go done(errors.New("backend closed"))
		return
	}
	x.b.queue = append(x.b.queue, x)
	x.b.cond.Broadcast()
}

func (b *memBackend) Load(k mqtt.StateKind, f func(string, []byte) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, v := range b.state[k] {
		if !f(key, v) {
			return
		}
	}
}

func (b *memBackend) Get(k mqtt.StateKind, key string) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.state[k][key]
	return v, ok
}

// The backend is a mqtt.Log, too: one partition, the index of a record is its offset.

func (x *memBurst) Mark(at *mqtt.Position) {
	if x.marks == nil {
		x.marks = map[int]*mqtt.Position{}
	}
	x.marks[len(x.recs)-1] = at
}

func (b *memBackend) Ends(f func(uint32, int64)) {
	b.mu.Lock()
	n := len(b.records)
	b.mu.Unlock()
	f(7, int64(n))
}

func (b *memBackend) Read(_ uint32, from int64, f func(int64, *mqtt.Stored) bool) (int64, error) {
	b.mu.Lock()
	recs := b.records[from:min(len(b.records), int(from)+10)]
	b.mu.Unlock()
	for i := range recs {
		r := &recs[i]
		m := mqtt.Stored{Topic: r.topic, Client: r.client, QoS: r.qos, Retain: r.retain, Payload: []byte(r.payload)}
		from++
		if !f(from-1, &m) {
			break
		}
	}
	return from, nil
}
