package dedupe_test

import (
	"math/rand/v2"
	"testing"

	"tailrace/edge/dedupe"
)

// Against a map: random sequence numbers of random boots, with gaps, re-sends and jumps.
func TestStateEqualsAMap(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for round := range 50 {
		var state []byte
		known := map[[2]uint64]bool{}
		high := map[uint64]uint64{}
		var order []uint64 // boots, newest last
		for step := range 3000 {
			boot := uint64(r.IntN(6))
			seq := high[boot] + uint64(r.IntN(5))
			switch r.IntN(30) {
			case 0:
				seq += uint64(r.IntN(3000))
			case 1, 2, 3, 4:
				seq -= min(seq, uint64(r.IntN(1100)))
			}
			remembered := false
			for _, b := range order {
				remembered = remembered || b == boot
			}
			want := dedupe.New
			if remembered && seq <= high[boot] {
				if high[boot]-seq >= dedupe.Window {
					want = dedupe.TooOld
				} else if known[[2]uint64{boot, seq}] {
					want = dedupe.Known
				}
			}
			if got := dedupe.Look(state, boot, seq); got != want {
				t.Fatalf("seed %d, round %d, step %d: boot %d seq %d: %d, want %d", seed, round, step, boot, seq, got, want)
			}
			state = dedupe.Fold(state, dedupe.AppendDelta(nil, boot, seq))
			if !remembered {
				if len(order) == dedupe.MaxBoots {
					for k := range known {
						if k[0] == order[0] {
							delete(known, k)
						}
					}
					delete(high, order[0])
					order = order[1:]
				}
				high[boot] = seq
			}
			for i, b := range order {
				if b == boot {
					order = append(order[:i:i], order[i+1:]...)
					break
				}
			}
			order = append(order, boot)
			high[boot] = max(high[boot], seq)
			known[[2]uint64{boot, seq}] = true
		}
		if len(state) > 1+dedupe.MaxBoots*144 {
			t.Fatalf("%d bytes", len(state))
		}
	}
}

func FuzzFold(f *testing.F) {
	f.Add([]byte{1}, dedupe.AppendDelta(nil, 1, 2))
	f.Add(dedupe.Fold(nil, dedupe.AppendDelta(nil, 1, 2)), dedupe.AppendDelta(nil, 1, 1<<63))
	f.Fuzz(func(t *testing.T, old, delta []byte) {
		s := dedupe.Fold(old, delta)
		if len(s) > max(len(old), 1+dedupe.MaxBoots*144) {
			t.Fatalf("grew to %d", len(s))
		}
		dedupe.Fold(s, delta)
		dedupe.Look(s, 1, 2)
	})
}
