package ranges_test

import (
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"tailrace/uplink/ranges"
)

var seed = flag.Uint64("seed", 0, "seed of the random model test, 0 = random")

// The model is one bool per offset.
const space = 64

type model [space]bool

func (m *model) set(from, to int64, v bool) {
	for i := max(from, 0); i < min(to, space); i++ {
		m[i] = v
	}
}

func (m *model) ranges() (s ranges.Set) {
	for i := int64(0); i < space; i++ {
		if m[i] {
			j := i
			for j < space && m[j] {
				j++
			}
			s = append(s, ranges.Range{From: i, To: j})
			i = j
		}
	}
	return s
}

func TestSetIsTheModel(t *testing.T) {
	sd := *seed
	if sd == 0 {
		sd = rand.Uint64()
	}
	rng := rand.New(rand.NewPCG(sd, 1))
	for round := range 2000 {
		var m model
		var s ranges.Set
		for range 40 {
			from, to := rng.Int64N(space), rng.Int64N(space)
			switch rng.IntN(5) {
			case 0, 1:
				s.Add(from, to)
				m.set(from, to, true)
			case 2:
				s.Remove(from, to)
				m.set(from, to, false)
			case 3:
				var o ranges.Set
				o.Add(from, to)
				o.Add(to, to+3)
				for _, r := range o {
					m.set(r.From, min(r.To, space), true)
				}
				s.AddSet(o.Within(0, space))
			case 4:
				o := ranges.Of(from, to)
				s.RemoveSet(o)
				m.set(from, to, false)
			}
			fail := func(what string, got, want any) {
				t.Fatalf("seed %d round %d: %s is %v, the model says %v", sd, round, what, got, want)
			}
			want := m.ranges()
			if !s.Valid() || !s.Equal(want) {
				fail("set", s, want)
			}
			var n int64
			all := true
			miss := model{}
			for i := from; i < to; i++ {
				all = all && m[i]
				miss[i] = !m[i]
			}
			for _, v := range m {
				if v {
					n++
				}
			}
			if s.Count() != n {
				fail("count", s.Count(), n)
			}
			if s.Covers(from, to) != all {
				fail("covers", s.Covers(from, to), all)
			}
			if s.Contains(from) != m[from] {
				fail("contains", s.Contains(from), m[from])
			}
			if got := s.Missing(from, to); !got.Equal(miss.ranges()) {
				fail("missing", got, miss.ranges())
			}
			if got, in := s.Within(from, to), (model{}); true {
				for i := from; i < to; i++ {
					in[i] = m[i]
				}
				if !got.Equal(in.ranges()) {
					fail("within", got, in.ranges())
				}
			}
			b, err := cbor.Marshal(s)
			if err != nil {
				t.Fatal(err)
			}
			var back ranges.Set
			if err := cbor.Unmarshal(b, &back); err != nil || !back.Equal(s) {
				fail("round trip", back, s)
			}
		}
	}
}

func TestWireRefusesWhatIsNotASet(t *testing.T) {
	for name, flat := range map[string][]uint64{
		"odd":      {1},
		"empty":    {1, 0},
		"touching": {1, 2, 0, 3},
		"overflow": {1 << 62, 1<<63 - 1},
		"huge gap": {1<<64 - 1, 1},
	} {
		b, _ := cbor.Marshal(flat)
		var s ranges.Set
		if err := cbor.Unmarshal(b, &s); err == nil {
			t.Errorf("%s: %v was taken as %v", name, flat, s)
		}
	}
	if _, err := cbor.Marshal(ranges.Set{{From: 5, To: 3}}); err == nil {
		t.Error("an invalid set was encoded")
	}
}
