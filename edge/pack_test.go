package edge_test

import (
	"fmt"
	"strings"
	"testing"
)

// TestNodeWithACommitIntervalPacks: its log takes less than the payloads, which come back as
// they were, also after a restart without an interval. Without one nothing is packed.
func TestNodeWithACommitIntervalPacks(t *testing.T) {
	for _, interval := range []string{"1ms", "0s"} {
		dir := t.TempDir()
		n, stop := nodeOn(t, strings.Replace(plain, "commit_interval: 0s", "commit_interval: "+interval, 1)+"default: {stream: s}\n", dir, nil)
		p := client(t, n, "c")
		const messages = 20
		var want []string
		payload := 0
		for i := range messages {
			body := fmt.Sprint(i, strings.Repeat(" much of the same", 100))
			if r := publish(t, p, "a", body); r != 0 {
				t.Fatalf("0x%02X", r)
			}
			want, payload = append(want, body), payload+len(body)
		}
		if got := values(t, n, "s"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("interval %s: other payloads: %.200q", interval, got)
		}
		written := int(n.Store().Stats().Classes[0].WrittenBytes)
		if packs := written < payload; packs != (interval != "0s") {
			t.Errorf("interval %s: the log took %d bytes for %d of payload", interval, written, payload)
		}
		stop()
		n, stop = nodeOn(t, plain+"default: {stream: s}\n", dir, nil)
		if got := values(t, n, "s"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("interval %s, opened again: other payloads: %.200q", interval, got)
		}
		stop()
	}
}
