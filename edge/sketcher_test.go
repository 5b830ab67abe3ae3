package edge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tailrace/uplink/pki"
	"tailrace/uplink/wire"
)

// The metrics of a sketch, of a node that has no hub: each row that is written is counted, none is sent, and those that the disk had no room for are
// dropped. A stream without a sketch has none of them.
func TestRowsOfASketchAreCounted(t *testing.T) {
	dir := t.TempDir()
	certs(t, dir, time.Now(), map[string]pki.Role{"node-1": pki.RoleNode})
	n, _ := stoppableNode(t, `
node: node-1
storage: {dir: "%DIR%/data", classes: [{name: main, when_full: drop-oldest, max_size: 384KiB, segment_size: 64KiB, commit_interval: 0s}]}
mqtt:
  listeners: [{address: "127.0.0.1:0"}]
  auth: {allow_anonymous: true}
routes: [{topic: "plain/#", stream: p}]
default: {stream: s}
topics: [{match: s, sketch: {window: 1s}}]
uplink: {hubs: ["127.0.0.1:1"], tls: {cert: "%DIR%/node-1.crt", key: "%DIR%/node-1.key", ca: "%DIR%/ca.crt"}}
http: {address: "127.0.0.1:0"}
`, dir)
	p := client(t, n, "d")
	publish(t, p, "plain/a", "x")
	padding := strings.Repeat("x", 2000) // at most 100 KB/s: a window is over before its records are dropped
	sketch := func() (start, end int64) {
		if tp, ok := n.Store().Topic("s" + wire.SketchSuffix); ok {
			start, end = tp.Partition(0).Start(), tp.Partition(0).HighWatermark()
		}
		return start, end
	}
	until(t, "rows are dropped", func() bool {
		if r := publish(t, p, "a", padding); r != 0 {
			t.Fatalf("publish: 0x%02X", r)
		}
		start, _ := sketch()
		return start > 0
	})
	until(t, "they are counted", func() bool { // no more are dropped now
		start, end := sketch()
		_, m := get(t, n, "/metrics")
		if strings.Contains(m, `tailrace_sketch_rows_total{topic="p"}`) || !strings.Contains(m, `tailrace_sketch_sent_rows_total{topic="s"} 0`) {
			t.Fatalf("metrics:\n%s", m)
		}
		return strings.Contains(m, fmt.Sprintf("tailrace_sketch_rows_total{topic=\"s\"} %d\n", end)) &&
			strings.Contains(m, fmt.Sprintf("tailrace_sketch_dropped_rows_total{topic=\"s\"} %d\n", start))
	})
}
