package scenario

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace/edge"
	"tailrace/uplink/hub"
)

func alarmed(st edge.Status) bool {
	return slices.ContainsFunc(st.Alarms, func(a edge.Alarm) bool { return a.Kind == "refused_topic" })
}

// A node writes what the hub's rule allows and nothing else: the refused topic is shown at
// both ends, holds nothing up, loses nothing, and comes when the rule allows it.
func TestANodeWritesOnlyWhatItsRuleAllows(t *testing.T) {
	inTruth(t, nil, func(w *truth) {
		w.hub.off()
		w.tuneHub = func(c *hub.Config) {
			c.NodeRules = []hub.NodeRule{{Match: "other", Topics: []string{"*"}}, {Match: "node-?", Topics: []string{quiet, "of.{node}.*"}}, {Match: "*", Topics: []string{"*"}}}
		}
		w.must(w.hub.on())
		w.put(w.node, stream, "a", 0, 300)
		w.put(w.node, quiet, "q", 0, 5)
		w.until("the allowed topic is here", func() bool { return len(w.told(quiet)) == 5 })
		w.put(w.node, stream, "a", 300, 50)
		w.put(w.node, quiet, "q", 5, 5)
		w.until("the allowed topic goes on", func() bool { return len(w.told(quiet)) == 10 })
		time.Sleep(time.Minute)
		if n := len(w.told(stream)); n != 0 {
			t.Fatalf("%d records of a refused topic are here", n)
		}
		info := w.info()
		if len(info.Refused) != 1 || info.Refused[0].Topic != stream || !strings.Contains(info.Refused[0].Reason, "node-?") || info.State != "connected" {
			t.Errorf("the hub shows %+v", info)
		}
		if info.LagRecords != 0 {
			t.Errorf("lag of %d records: what is refused is not late", info.LagRecords)
		}
		st := w.node.edge().Status()
		if len(st.Uplink.Refused) != 1 || st.Uplink.Refused[0].Topic != stream {
			t.Errorf("the node shows %+v", st.Uplink)
		}
		if !alarmed(st) {
			t.Errorf("alarms %+v", st.Alarms)
		}
		w.hub.off()
		w.tuneHub = nil
		w.must(w.hub.on())
		w.complete()
		w.exact(stream)
		w.exact(quiet)
		if st := w.node.edge().Status(); len(st.Uplink.Refused) != 0 || alarmed(st) {
			t.Errorf("still refused at the node: %+v", st.Uplink)
		}
	})
}
