package scenario

import (
	"strings"
	"testing"
	"time"

	"tailrace/edge"
	"tailrace/uplink/hub"
)

// A satellite link has a monthly budget: when it is used up, only urgent topics go on, also
// after power cuts of the node and with its clock in 1970; both ends show it. Another link
// takes what waited, and so does the next month.
func TestMonthlyBudgetOfALink(t *testing.T) {
	iface := "sat0"
	synced := true
	inTruth(t, func(c *edge.Config) {
		c.Topics = []edge.TopicConfig{{Match: quiet, Priority: 1}}
		c.Uplink.Links = []edge.LinkConfig{{Name: "sat", Match: []string{"sat*"}, RateLimit: 16 << 10, Monthly: 64 << 10, ResetDay: 2}, {Name: "lte", Match: []string{"wwan*"}, Monthly: 1 << 30}}
		c.Interface = func(string) string { return iface }
		c.ClockSynced = func() bool { return synced }
	}, func(w *truth) {
		w.ready(w.node)
		w.ready(w.hub)
		links := func() map[string]hub.NodeLinkInfo {
			out := map[string]hub.NodeLinkInfo{}
			if s := w.info().Status; s != nil {
				for _, l := range s.Links {
					out[l.Name] = l
				}
			}
			return out
		}
		n, q := 0, 0
		for ; links()["sat"].Held == ""; n += 20 { // until it is used up
			if n > 20000 {
				t.Fatalf("the budget is never used up: %+v", links())
			}
			w.put(w.node, stream, "a", n, 20)
			time.Sleep(5 * time.Second)
		}
		l := links()["sat"]
		if l.Interface != "sat0" || l.Used < 64<<10 || l.Left != 0 || l.Forecast < l.Used || l.Ends == "" || l.RateLimit != 16<<10 || !strings.Contains(l.Held, "used up") || links()["lte"].Used != 0 {
			t.Errorf("%+v", links())
		}
		if st := w.node.edge().Status(); len(st.Uplink.Links) != 2 || st.Uplink.Links[0].Held == "" {
			t.Errorf("the node shows %+v", st.Uplink.Links)
		}
		held := func(what string) {
			t.Helper()
			before, urgent := w.count(stream), w.count(quiet)
			w.put(w.node, stream, "a", n, 100)
			n += 100
			w.put(w.node, quiet, "q", q, 1)
			q++
			w.until("the urgent record is here: "+what, func() bool { return w.count(quiet) == urgent+1 })
			time.Sleep(time.Minute)
			if got := w.count(stream); got != before {
				t.Fatalf("%s: %d records came beyond the budget", what, got-before)
			}
		}
		held("at once")
		used := links()["sat"].Used
		synced = false // it comes back with a clock that nobody vouches for
		w.node.off()
		w.must(w.node.on())
		w.ready(w.node)
		held("after a restart")
		if now := links()["sat"].Used; now < used {
			t.Errorf("%d bytes used before the restart, %d after", used, now)
		}
		synced = true
		iface = "wwan0"
		w.complete()
		time.Sleep(30 * time.Second) // the next report
		if l := links(); l["sat"].Held != "" || l["sat"].Interface != "" || l["lte"].Interface != "wwan0" || l["lte"].Used == 0 {
			t.Errorf("over the other link: %+v", l)
		}
		iface = "sat0"
		time.Sleep(10 * time.Second)
		held("back on the satellite")
		for time.Now().Local().Day() == 1 { // the world begins on the first of January: the next period is near
			time.Sleep(time.Hour)
		}
		w.complete()
		w.exact(stream)
		w.exact(quiet)
	})
}
