package mqtt_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"tailrace/edge/mqtt"
)

// A delta of QoS 1 entries only takes a short way through the fold. Releasing an id
// that is not open changes nothing and forces the long way: both must agree.
func TestBothWaysOfTheFoldAgree(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, keep := range []int{1, 3, 50} {
		var old []byte
		for round := range 300 {
			delta := binary.BigEndian.AppendUint16(nil, uint16(keep))
			if round%7 == 0 {
				delta = append(delta, 2, byte(round), 1) // a QoS 2 id stays open
			} else {
				for range rng.IntN(2 * keep) {
					delta = append(delta, 1)
					delta = binary.BigEndian.AppendUint16(delta, uint16(rng.Uint32()))
					delta = binary.BigEndian.AppendUint64(delta, rng.Uint64())
				}
			}
			before := bytes.Clone(old)
			short := mqtt.FoldWindow(old, delta)
			long := mqtt.FoldWindow(old, append(bytes.Clone(delta), 3, 0xff, 0xff))
			if !bytes.Equal(short, long) {
				t.Fatalf("keep %d round %d:\nshort % x\nlong  % x", keep, round, short, long)
			}
			if !bytes.Equal(old, before) {
				t.Fatal("the fold changed its argument")
			}
			old = short
		}
	}
}
