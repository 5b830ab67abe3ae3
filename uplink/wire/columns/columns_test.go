package columns

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// makeBatch builds a batch as a node stores it.
func makeBatch(base, time int64, recs []rec) []byte {
	h := batchHead{base: base, time: time, count: len(recs), maxIs: true}
	h.fixed[4] = 2
	for i := 7; i < 21; i++ {
		h.fixed[i] = 0xff
	}
	w := beginBatch(nil, &h)
	for _, r := range recs {
		w.add(r.time, r.key, r.value, r.head)
	}
	return w.end()
}

func key(s string) []byte { return append([]byte{1}, s...) }

// site makes n records of six turbines, some odd ones among them, in batches of batch.
func site(rng *rand.Rand, n, batch int, odd bool) (out []byte) {
	var power [6]float64
	var recs []rec
	base := int64(0)
	for i := range n {
		d := i % 6
		ts := 1_700_000_000_000 + int64(i/6)*1000
		power[d] += rng.NormFloat64() * 10
		v := fmt.Appendf(nil, `{"id":"T%02d","ts":%d,"seq":%d,"power":%.1f,"wind":%v,"temp":%d,"state":"%s","ok":%v}`,
			d, ts, i, power[d], float64(rng.IntN(2500))/100, rng.IntN(3)+20, []string{"run", "stop"}[rng.IntN(20)/19], rng.IntN(9) > 0)
		r := rec{time: ts, key: key(fmt.Sprintf("T%02d", d)), value: v, head: []byte{0}}
		if odd {
			switch rng.IntN(40) {
			case 0:
				r.value = []byte{0xa1, 0, 0xff, byte(rng.Uint32())}
			case 1:
				r.value = []byte(`{"a":[1,2.50,-0,-0.0,007,1e9,1.7976931348623157e308,"\"x\\",{"b":"unterminated`)
			case 2:
				r.value = []byte{}
			case 3:
				r.key = []byte{0}
			case 4:
				r.value = fmt.Appendf(nil, `{"id":"T%02d","power":%.*f}`, d, rng.IntN(18), rng.Float64()*1000)
			case 5:
				r.time -= rng.Int64N(1 << 40)
			case 6:
				r.head = []byte("\x02\x02k\x02v")
			case 7:
				r.value = fmt.Appendf(nil, "%d", int64(rng.Uint64()))
			case 8:
				r.value = bytes.Repeat([]byte("1,"), rng.IntN(700))
			}
		}
		recs = append(recs, r)
		if len(recs) == batch || i == n-1 {
			out = append(out, makeBatch(base, recs[0].time, recs)...)
			base += int64(len(recs))
			recs = nil
		}
	}
	return out
}

// frames cuts at batch boundaries.
func frames(b []byte, size int) (out [][]byte) {
	for len(b) > 0 {
		n := 0
		for n < len(b) && (n == 0 || n < size) {
			x, _, err := nextBatch(b[n:])
			if err != nil {
				panic(err)
			}
			n += len(x)
		}
		out = append(out, b[:n])
		b = b[n:]
	}
	return out
}

func roundTrip(t testing.TB, max int, fs [][]byte) (wire int) {
	e, d := NewEncoder(max), NewDecoder(max)
	for i, f := range fs {
		b, first, err := e.Append(nil, f)
		if errors.Is(err, errFull) {
			wire += len(f)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if first {
			d.Reset()
		}
		got, err := d.Append(nil, b, len(f))
		if err != nil {
			t.Fatalf("frame %d of %d bytes: %v", i, len(f), err)
		}
		if !bytes.Equal(got, f) {
			t.Fatalf("frame %d differs", i)
		}
		if d.s.size != e.s.size {
			t.Fatalf("frame %d: the states have %d and %d bytes", i, d.s.size, e.s.size)
		}
		wire += len(b)
	}
	return wire
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		b := site(rng, 600, 1+rng.IntN(200), seed%2 == 1)
		roundTrip(t, 64<<10<<rng.IntN(4), frames(b, 1<<(8+rng.IntN(10))))
	}
}

func TestTelemetryTakesFewBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	const n = 6000
	bulk := roundTrip(t, 4<<20, frames(site(rng, n, 100, false), 256<<10))
	live := roundTrip(t, 256<<10, frames(site(rng, n, 1, false), 1))
	t.Logf("%.1f bytes a record in bulk, %.1f one by one", float64(bulk)/n, float64(live)/n)
	if bulk > 6*n || live > 14*n {
		t.Errorf("%d bytes in bulk and %d one by one for %d records", bulk, live, n)
	}
}

func TestBatchesThatAreNotUnderstoodTravelAsTheyAre(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	good := site(rng, 50, 10, false)
	for range 400 {
		b := bytes.Clone(good)
		for range 1 + rng.IntN(4) {
			i := rng.IntN(len(b))
			if i%len(b) >= posLength && i < posEpoch {
				continue
			}
			b[i] = byte(rng.Uint32())
		}
		fs := func() (fs [][]byte) {
			defer func() {
				if recover() != nil {
					fs = nil // a length was hit: not whole batches
				}
			}()
			return frames(b, 1)
		}()
		roundTrip(t, MinState, fs)
	}
}

// FuzzDecode: no input makes the decoder panic or hold more than it may.
func FuzzDecode(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 1))
	b := site(rng, 60, 20, true)
	e := NewEncoder(MinState)
	for _, x := range frames(b, 2000) {
		enc, _, err := e.Append(nil, x)
		if err != nil {
			continue
		}
		f.Add(enc, uint16(len(x)))
	}
	f.Fuzz(func(t *testing.T, frame []byte, size uint16) {
		d := NewDecoder(MinState)
		d.Reset()
		for range 2 {
			out, err := d.Append(nil, frame, int(size))
			if err != nil {
				if !errors.Is(err, ErrCorrupt) && !errors.Is(err, errFull) {
					t.Fatal(err)
				}
				return
			}
			if len(out) != int(size) {
				t.Fatalf("%d bytes, %d announced", len(out), size)
			}
		}
	})
}

// FuzzEncode: whatever a batch's values are, they come back.
func FuzzEncode(f *testing.F) {
	f.Add([]byte(`{"a":1.50,"b":"x"}`), []byte(`{"a":1.5,"b":null}`), int64(1))
	f.Add([]byte(`-0 1e5 00 "`), []byte{0, 1}, int64(-1))
	f.Fuzz(func(t *testing.T, a, b []byte, ts int64) {
		recs := []rec{{time: ts, key: key("k"), value: a, head: []byte{0}}, {time: ts + 5, key: []byte{0}, value: b, head: []byte{0}}, {time: ts + 9, key: key("k"), value: b, head: []byte{0}}, {time: ts + 11, key: key("k"), value: a, head: []byte{0}}}
		x := makeBatch(3, ts, recs)
		roundTrip(t, MinState, [][]byte{x, x})
	})
}

func BenchmarkEncode(b *testing.B) {
	fs := frames(site(rand.New(rand.NewPCG(7, 1)), 6000, 100, false), 256<<10)
	b.SetBytes(int64(len(fs[0])))
	e := NewEncoder(4 << 20)
	for b.Loop() {
		if _, _, err := e.Append(nil, fs[0]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(binary.BigEndian.Uint32(fs[0][posCount:]))*float64(len(fs[0]))/float64(binary.BigEndian.Uint32(fs[0][posLength:])+12)/b.Elapsed().Seconds(), "records/s")
}
