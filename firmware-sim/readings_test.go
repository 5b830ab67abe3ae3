package firmwaresim_test

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	firmwaresim "tailrace/firmware-sim"
)

func TestReadingsHaveTheirSize(t *testing.T) {
	for bytes, signals := range map[int]int{180: 4, 430: 20} {
		farm, err := firmwaresim.ReadingFarm("north", 3, bytes)
		if err != nil {
			t.Fatal(err)
		}
		var s firmwaresim.Sample
		total, n := 0, 0
		var last []byte
		for i := range farm {
			src := farm[i].Source(rand.New(rand.NewPCG(uint64(i), 1)), 7)
			again := farm[i].Source(rand.New(rand.NewPCG(uint64(i), 1)), 7)
			for k := range 2000 {
				at := time.Duration(k) * time.Second
				src.Next(at, &s)
				p := farm[i].Telemetry(&s, time.UnixMilli(1_793_534_400_000).Add(at), 0xabcd, uint64(k+1))
				again.Next(at, &s)
				if q := farm[i].Telemetry(&s, time.UnixMilli(1_793_534_400_000).Add(at), 0xabcd, uint64(k+1)); string(p) != string(q) {
					t.Fatalf("same seed, %s and %s", p, q)
				}
				total, n, last = total+len(p), n+1, p
			}
		}
		if mean := total / n; mean < bytes-8 || mean > bytes+8 {
			t.Errorf("readings of %d bytes take %d: %s", bytes, mean, last)
		}
		var m struct{ Signals map[string]float64 }
		if err := json.Unmarshal(last, &m); err != nil || len(m.Signals) != signals {
			t.Errorf("%d signals, want %d (%v): %s", len(m.Signals), signals, err, last)
		}
	}
	if _, err := firmwaresim.ReadingFarm("north", 3, 200); err == nil {
		t.Error("readings of 200 bytes")
	}
}
