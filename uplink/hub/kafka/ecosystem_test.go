package kafka_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"tailrace/storage/record"
	"tailrace/storage/storagetest"
)

// The ecosystem on the hub: real programs that are built on Kafka. They take long to
// start, so CI runs one of them, another with each commit; TAILRACE_ECOSYSTEM=all (make
// ecosystem), or the name of one.

var ecosystemParts = []string{"streams", "debezium", "mirror"}

func ecosystem(t *testing.T, part string) (dir string) {
	t.Helper()
	dir = clientsDir(t)
	want := os.Getenv("TAILRACE_ECOSYSTEM")
	if want == "" {
		want = ecosystemParts[storagetest.Rotation()%uint64(len(ecosystemParts))]
	}
	if want != "all" && want != part {
		t.Skipf("it is the turn of %s (TAILRACE_ECOSYSTEM=all runs all)", want)
	}
	return dir
}

// TestStreamsApplication: a stateful Kafka Streams application is killed, loses its
// disk, restores its store from the compacted topic on the hub, and ends with what it
// would have had without.
func TestStreamsApplication(t *testing.T) {
	dir := ecosystem(t, "streams")
	h := newHub(t)
	in, out := h.topic("readings", 2), h.topic("windows", 1)
	const turbines, windows = 5, 8
	send := func(from, to int) {
		t.Helper()
		for part := range 2 {
			var bl record.Builder
			bl.Reset(nil)
			for w := range windows {
				for i := from; i < to; i++ {
					for k := part; k < turbines; k += 2 {
						bl.Add(t0+int64(w)*10_000+int64(i), fmt.Appendf(nil, "wtg-%d", k), fmt.Append(nil, i), nil)
					}
				}
			}
			a := h.store.NewAppend("")
			if err := a.Batch(in.Partition(part), record.Batch(bl.Finish(0, 0)), nil); err != nil {
				t.Fatal(err)
			}
			h.commit(a)
		}
	}
	state := t.TempDir()
	start := func() *program {
		return java(t, "streams", filepath.Join(dir, "lib"), "testdata/java/Streams.java", h.addr, state)
	}
	// complete tells how many windows have all numbers below n.
	complete := func(n int) (count int) {
		last := map[string]string{}
		if hw := out.Partition(0).HighWatermark(); hw > 0 {
			for _, r := range poll(t, h.client(consumeAll("windows")), int(hw)) {
				last[string(r.Key)] = string(r.Value)
			}
		}
		for k := range turbines {
			for w := range windows {
				if last[fmt.Sprintf("WTG-%d@%d", k, t0+w*10_000)] == fmt.Sprint(int64(1)<<n-1) {
					count++
				}
			}
		}
		return count
	}
	send(0, 30)
	p := start()
	p.await("the first half", func() bool { return complete(30) == turbines*windows })
	p.kill()
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	// What Streams made is as it asked for, and compacted the store can still be restored.
	rs, err := kadm.NewClient(h.client()).DescribeTopicConfigs(withTimeout(t), "bits-bits-changelog", "bits-bits-repartition")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		for _, c := range r.Configs {
			if want := map[string]string{"bits-bits-changelog": "compact,delete", "bits-bits-repartition": "delete"}[r.Name]; c.Key == "cleanup.policy" && *c.Value != want {
				t.Errorf("%s: cleanup.policy %s, want %s", r.Name, *c.Value, want)
			}
		}
	}
	if err := h.store.Compact(); err != nil {
		t.Fatal(err)
	}
	if st := h.store.Stats().Classes[0]; st.CompactedAway == 0 {
		t.Errorf("nothing was compacted: %+v", st)
	}
	send(30, 62)
	p = start()
	p.await("the second half", func() bool { return complete(62) == turbines*windows })
	p.kill()
	if s := p.out.String(); strings.Contains(s, "Exception") {
		t.Errorf("it complained:\n%.4000s", s)
	}
}
