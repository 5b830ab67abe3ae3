package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// The node is killed -9 after the fsync and before the PUBACK has reached the device, every time:
// the device reads all answers of a window, so all of it is durable, and forgets those
// beyond a random one, as if they had been lost with the node. What it sends again with DUP is
// stored once. 5 kills; TAILRACE_KILLS=200 is the long form.
func TestWhatWasDurableBeforeTheKillIsStoredOnce(t *testing.T) {
	kills := 5
	if n, err := strconv.Atoi(os.Getenv("TAILRACE_KILLS")); err == nil {
		kills = n
	}
	d := newDaemon(t, "")
	d.start()
	resent, next, acked := 0, 0, 0
	for k := range kills + 1 {
		x := d.connect("device")
		if k > 0 && !x.present {
			t.Fatal("the session is forgotten")
		}
		for i := acked; i < next; i++ {
			x.publish(uint16(i%60000+1), true, "dev/a", fmt.Sprintf(`{"n":%d}`, i))
			resent++
		}
		for n := next + 1 + rand.IntN(40); next < n; next++ {
			x.publish(uint16(next%60000+1), false, "dev/a", fmt.Sprintf(`{"n":%d}`, next))
		}
		for i := acked; i < next; i++ {
			if id, ok := x.ack(); !ok || id != uint16(i%60000+1) {
				t.Fatalf("kill %d: PUBACK %d, %v; want %d", k, id, ok, i%60000+1)
			}
		}
		if k == kills {
			acked = next
		} else {
			acked += rand.IntN(next - acked + 1)
			d.kill()
			d.start()
		}
		x.c.Close()
	}
	got := d.records("unrouted")
	for i, r := range got {
		if want := fmt.Sprintf(`{"n":%d}`, i); string(r.Value) != want {
			t.Fatalf("record %d is %s, want %s", i, r.Value, want)
		}
	}
	if len(got) != acked {
		t.Fatalf("%d stored, %d sent", len(got), acked)
	}
	t.Logf("%d kills, %d records, %d of them sent again: each is stored once", kills, len(got), resent)
}
