package scenario

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// willDevice connects with a will that names the connection, stays for a while, and leaves
// in order, or without a word, or for ever.
type willDevice struct {
	w    *world
	id   string
	rng  *rand.Rand
	mu   sync.Mutex
	last []connection // by number - 1; guarded by mu
}

// connection is what became of an attempt to connect. What was not accepted may have a will
// or none, but not two.
type connection struct {
	accepted bool
	clean    bool      // DISCONNECT was sent and the end of the connection read
	unsure   bool      // DISCONNECT was sent, and nobody knows whether it was read
	ended    time.Time // when the device saw its end
	gone     bool      // nobody with this client id came back
}

func (w *world) willDevices(ctx context.Context) (ds []*willDevice, wait func()) {
	var wg sync.WaitGroup
	for i := range w.plan.wills {
		d := &willDevice{w: w, id: fmt.Sprintf("will-%d", i), rng: rand.New(rand.NewPCG(w.seed, uint64(100+i)))}
		ds = append(ds, d)
		wg.Go(func() { d.run(ctx) })
	}
	return ds, wg.Wait
}

func (d *willDevice) run(ctx context.Context) {
	dies := d.w.start.Add(time.Duration(d.rng.IntN(40000)) * time.Millisecond) // or never
	for n := 1; ; n++ {                                                        // each attempt has a will of its own: its CONNACK may be what gets lost
		last := ctx.Err() != nil
		d.mu.Lock()
		d.last = append(d.last, connection{})
		d.mu.Unlock()
		conn, err := d.connect(n)
		if err != nil {
			if last {
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(time.Duration(50+d.rng.IntN(500)) * time.Millisecond)
			continue
		}
		d.mu.Lock()
		for k := range d.last {
			d.last[k].gone = false
		}
		d.mu.Unlock()
		stay := time.Duration(200+d.rng.IntN(5000)) * time.Millisecond
		_ = conn.SetReadDeadline(time.Now().Add(stay))
		_, err = conn.Read(make([]byte, 1))
		c := connection{accepted: true, gone: true}
		alive := errors.Is(err, os.ErrDeadlineExceeded)
		forEver := last || time.Now().After(dies)
		if alive && d.rng.IntN(2) == 0 {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, err := conn.Write([]byte{0xe0, 0})
			_, rerr := conn.Read(make([]byte, 1))
			c.clean = err == nil && errors.Is(rerr, io.EOF)
			c.unsure = !c.clean // the node may have read it or not
		}
		if !c.clean {
			conn.(*memConn).reset()
		} else {
			conn.Close()
		}
		c.ended = time.Now()
		d.mu.Lock()
		d.last[n-1] = c
		d.mu.Unlock()
		if forEver {
			d.w.say("%s is gone for ever, clean=%v", d.id, c.clean)
			return
		}
		time.Sleep(time.Duration(d.rng.IntN(4000)) * time.Millisecond)
	}
}

func (d *willDevice) connect(n int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := d.w.site.dial(ctx)
	if err != nil {
		return nil, err
	}
	version := byte(4 + d.rng.IntN(2))
	will, err := json.Marshal(willPayload{true, d.id, n})
	if err != nil {
		return nil, err
	}
	body := append(lengthPrefixed(nil, "MQTT"), version, 0x02|0x04|1<<3) // clean, will, QoS 1
	body = binary.BigEndian.AppendUint16(body, 10)
	if version == 5 {
		body = append(body, 0)
	}
	body = lengthPrefixed(body, d.id)
	if version == 5 {
		body = append(body, 0)
	}
	body = lengthPrefixed(lengthPrefixed(body, aux+"/will/"+d.id), string(will))
	if err := call(conn, 0x10, body, 0x20, func(b []byte) bool { return len(b) >= 2 && b[1] == 0 }); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// call writes a packet and reads its answer.
func call(conn net.Conn, typ byte, body []byte, answer byte, good func([]byte) bool) error {
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(append(binary.AppendUvarint([]byte{typ}, uint64(len(body))), body...)); err != nil {
		return err
	}
	got, b, err := packet(conn)
	if err == nil && (got != answer || !good(b)) {
		err = fmt.Errorf("answer %#x % x", got, b)
	}
	return err
}

// packet reads one MQTT packet.
func packet(conn net.Conn) (typ byte, body []byte, err error) {
	one := byteReader{conn}
	if typ, err = one.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(one)
	if err != nil || n > 1<<20 {
		return 0, nil, fmt.Errorf("packet of %d bytes: %w", n, err)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(conn, body)
	return typ, body, err
}

type byteReader struct{ r io.Reader }

func (b byteReader) ReadByte() (byte, error) {
	var one [1]byte
	_, err := io.ReadFull(b.r, one[:])
	return one[0], err
}

func lengthPrefixed(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

type willPayload struct {
	Will bool   `json:"will"`
	Dev  string `json:"dev"`
	N    int    `json:"n"`
}

// judge compares the wills at the hub with what became of the connections. seen counts
// them by number; declared says that some were given up.
func (d *willDevice) judge(seen map[int]int, declared bool) (wills int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for n, times := range seen {
		if n < 1 || n > len(d.last) {
			errs = append(errs, fmt.Errorf("%s: a will of connection %d, which was never tried", d.id, n))
		}
		if times > 1 {
			errs = append(errs, fmt.Errorf("%s: the will of connection %d is stored %d times", d.id, n, times))
		}
		wills += times
	}
	for i, c := range d.last {
		if !c.accepted || c.unsure {
			continue
		}
		n := i + 1
		calm := d.w.calm(c.ended)
		switch must := c.gone || calm; {
		case c.clean && calm && seen[n] > 0:
			errs = append(errs, fmt.Errorf("%s: connection %d ended with DISCONNECT at %v, and its will is stored", d.id, n, c.ended.Sub(d.w.start)))
		case !c.clean && must && seen[n] == 0 && !declared:
			errs = append(errs, fmt.Errorf("%s: connection %d of %d ended without DISCONNECT at %v (gone for ever: %v), and its will is not stored", d.id, n, len(d.last), c.ended.Sub(d.w.start), c.gone))
		}
	}
	return wills, errors.Join(errs...)
}

// subscribed returns what a subscriber that comes now is sent of the retained messages.
func (w *world) subscribed(filter string, want int) (map[string][]byte, error) {
	conn, err := w.site.dial(context.Background())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	hello := append(lengthPrefixed(nil, "MQTT"), 4, 2, 0, 60)
	if err := call(conn, 0x10, lengthPrefixed(hello, "subscriber"), 0x20, func(b []byte) bool { return len(b) == 2 && b[1] == 0 }); err != nil {
		return nil, fmt.Errorf("connect a subscriber: %w", err)
	}
	sub := append(lengthPrefixed([]byte{0, 1}, filter), 0)
	if err := call(conn, 0x82, sub, 0x90, func(b []byte) bool { return slices.Equal(b, []byte{0, 1, 0}) }); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	got := map[string][]byte{}
	for len(got) <= want { // one more, to see that there are not more
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		typ, b, err := packet(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return got, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read a retained message: %w", err)
		}
		if typ != 0x31 || len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return nil, fmt.Errorf("packet %#x instead of a retained message", typ)
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		got[string(b[2:n])] = b[n:]
	}
	return got, nil
}
