package edge_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"tailrace/edge"
	"tailrace/storage/storagetest"
)

const twoClasses = `
node: node-1
storage: {dir: "%DIR%/data", endurance: 1TB, classes: [{name: main, when_full: reject, commit_interval: 0s}, {name: audit, when_full: reject, commit_interval: 0s}]}
mqtt:
  listeners: [{address: "127.0.0.1:0"}]
  auth: {allow_anonymous: true}
routes: [{topic: "audit/#", stream: audit}]
topics: [{match: audit, class: audit}]
default: {stream: s}
http: {address: "127.0.0.1:0"}
`

// TestOneClassOnABadDisk: whatever the disk says to one class, its devices hear a refusal
// or nothing, never a yes; the other class goes on; the alarm is on; and when the disk is
// well again everything goes on by itself, without what was refused.
func TestOneClassOnABadDisk(t *testing.T) {
	for _, c := range []struct {
		err    syscall.Errno
		reason byte
		alarm  string
	}{{syscall.ENOSPC, 0x97, "disk_full"}, {syscall.EROFS, 0x83, "disk_error"}, {syscall.EIO, 0x83, "disk_error"}} {
		t.Run(c.err.Error(), func(t *testing.T) {
			dir := t.TempDir()
			fs := crashFS(t, dir)
			n, _ := nodeOn(t, twoClasses, dir, fs)
			sick, well := client(t, n, "sick"), client(t, n, "well")
			acked := map[string]bool{}
			try := func(p *paho.Client, topic, body string) int {
				r, err := p.Publish(t.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(body)})
				if r == nil {
					t.Logf("%s: connection ended: %v", body, err)
					return -1
				}
				if r.ReasonCode == 0 {
					acked[body] = true
				}
				return int(r.ReasonCode)
			}
			if r, q := try(sick, "audit/a", "before"), try(well, "x", "w0"); r != 0 || q != 0 {
				t.Fatal(r, q)
			}
			fs.Inject(storagetest.Fault{Call: storagetest.Change, Err: c.err, Forever: true,
				Match: func(path string) bool {
					return strings.Contains(path, string(filepath.Separator)+"audit"+string(filepath.Separator))
				}})
			heard := map[int]int{}
			for i := range 6 {
				r := try(sick, "audit/a", fmt.Sprint("during ", i))
				heard[r]++
				if r < 0 { // it is not certain that the record is gone, so nothing may be said
					sick = client(t, n, fmt.Sprint("sick", i))
				}
				if q := try(well, "x", fmt.Sprint("w", i+1)); q != 0 {
					t.Fatalf("the other class: 0x%02X", q)
				}
			}
			if heard[int(c.reason)] == 0 || heard[0] > 0 || heard[int(c.reason)]+heard[-1] != 6 {
				t.Errorf("heard %v, want 0x%02X or nothing", heard, c.reason)
			}
			if a := alarm(t, n, c.alarm); a.Class != "audit" || a.Since.IsZero() {
				t.Errorf("alarm %+v", a)
			}
			if _, m := get(t, n, "/metrics"); !strings.Contains(m, fmt.Sprintf(`tailrace_alarm{alarm=%q,class="audit"} 1`, c.alarm)) {
				t.Error("the metrics do not show the alarm")
			}
			fs.Heal()
			i := 0
			until(t, "the class takes something again", func() bool {
				r := try(sick, "audit/a", fmt.Sprint("after ", i))
				if r < 0 {
					sick = client(t, n, fmt.Sprint("again", i))
				}
				i++
				return r == 0
			})
			if a := alarm(t, n, c.alarm); a.Kind != "" {
				t.Errorf("the alarm stays: %+v", a)
			}
			seen := map[string]int{}
			for _, v := range append(values(t, n, "audit"), values(t, n, "s")...) {
				seen[v]++
			}
			for v := range acked {
				if seen[v] != 1 {
					t.Errorf("acknowledged %q is there %d times", v, seen[v])
				}
				delete(seen, v)
			}
			if len(seen) > 0 {
				t.Errorf("not acknowledged, and stored: %v", seen)
			}
		})
	}
}

func alarm(t *testing.T, n *edge.Node, kind string) (a edge.Alarm) {
	t.Helper()
	_, body := get(t, n, "/api/v1/status")
	var st edge.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil {
		t.Fatal(err)
	}
	for _, a := range st.Alarms {
		if a.Kind == kind {
			return a
		}
	}
	return a
}

// TestFlashLife: bytes at the block layer, fsyncs per minute and the life they leave.
func TestFlashLife(t *testing.T) {
	w := edge.NewWear(t, 40e12)
	w.Disk(0, 1000)
	w.Tick(0, 0, 0)
	w.Disk(time.Minute, 1000+2000) // 1 MB in a minute
	w.Tick(time.Minute, 600, 100_000)
	f := w.Status()
	if f.DeviceBytes != 1_024_000 || f.PerPayloadByte != 10.24 || f.FsyncsPerMinute != 600 {
		t.Errorf("%+v", f)
	}
	if years := 40e12 / (1.024e6 * 60 * 24 * 365); f.LifeYears < years*0.99 || f.LifeYears > years*1.01 {
		t.Errorf("life %v, want %v", f.LifeYears, years)
	}
	for i := range 100 { // the window moves on
		w.Tick(time.Minute+time.Duration(i+1)*5*time.Second, 600+uint64(i+1), 100_000)
	}
	if f := w.Status(); f.FsyncsPerMinute < 11 || f.FsyncsPerMinute > 13 {
		t.Errorf("%v fsyncs per minute, want 12", f.FsyncsPerMinute)
	}
}
