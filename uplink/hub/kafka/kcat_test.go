package kafka_test

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// kcat runs the real kcat against the hub. The tests' set-up installs it.
func (h *hub) kcat(stdin string, args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kcat", append([]string{"-b", h.addr, "-X", "fetch.wait.max.ms=20"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		h.t.Fatalf("kcat %v: %v\n%s", args, err, errs.String())
	}
	return out.String()
}

func numbered(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "%d k%d v%d %d mqtt.topic=wind/7\n", i, i, i, t0+int64(i)*1000)
	}
	return b.String()
}

const format = "%o %k %s %T %h\n"

func TestKcatListsTopics(t *testing.T) {
	h := newHub(t)
	h.topic("wind", 3)
	h.topic("press", 1)
	out := h.kcat("", "-L")
	for _, want := range []string{"2 topics", `topic "wind" with 3 partitions`, `topic "press" with 1 partitions`, "broker 1 at " + h.addr, "leader 1"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestKcatConsumes(t *testing.T) {
	h := newHub(t)
	for _, c := range []struct {
		name string
		per  int
		zip  bool
	}{{"single", 1, false}, {"plain", 100, false}, {"zstd", 300, true}} {
		tp := h.topic(c.name, 1)
		h.fill(tp.Partition(0), 0, 1000, c.per, c.zip)
		for _, q := range []struct {
			what string
			args []string
			want string
		}{
			{"from the beginning", []string{"-o", "beginning"}, numbered(0, 1000)},
			{"from an offset in the middle of a batch", []string{"-o", "555"}, numbered(555, 1000)},
			{"the last ten", []string{"-o", "-10"}, numbered(990, 1000)},
			{"from a time", []string{"-o", fmt.Sprintf("s@%d", t0+500_000)}, numbered(500, 1000)},
			{"from a time between records", []string{"-o", fmt.Sprintf("s@%d", t0+500_001)}, numbered(501, 1000)},
			{"between two times", []string{"-o", fmt.Sprintf("s@%d", t0+500_000), "-o", fmt.Sprintf("e@%d", t0+510_000)}, numbered(500, 510)},
			{"at the end", []string{"-o", "end"}, ""},
		} {
			got := h.kcat("", append([]string{"-C", "-q", "-t", c.name, "-e", "-f", format}, q.args...)...)
			if got != q.want {
				t.Errorf("%s, %s: %d bytes instead of %d: %.200q", c.name, q.what, len(got), len(q.want), got)
			}
		}
	}
}

func TestKcatProduces(t *testing.T) {
	h := newHub(t)
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		for _, extra := range [][]string{nil, {"-X", "enable.idempotence=true"}, {"-X", "acks=1"}, {"-X", "acks=0"}} {
			name := codec + strings.NewReplacer(" ", "", "=", "", "-X", "").Replace(strings.Join(extra, ""))
			h.topic(name, 1)
			var in, want strings.Builder
			for i := range 2000 {
				fmt.Fprintf(&in, "key%d:value number %d\n", i, i)
				fmt.Fprintf(&want, "%d key%d value number %d\n", i, i, i)
			}
			h.kcat(in.String(), append([]string{"-P", "-t", name, "-K", ":", "-z", codec}, extra...)...)
			if len(extra) > 0 && extra[1] == "acks=0" {
				h.await(name, 2000) // kcat is not told
			}
			if got := h.kcat("", "-C", "-q", "-t", name, "-e", "-o", "beginning", "-f", "%o %k %s\n"); got != want.String() {
				t.Errorf("%s: %d bytes instead of %d: %.100q", name, len(got), want.Len(), got)
			}
		}
	}
}

// await waits until partition 0 of the topic has n records.
func (h *hub) await(topic string, n int64) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tp, _ := h.store.Topic(topic)
	if err := tp.Partition(0).Wait(ctx, n-1); err != nil {
		h.t.Fatalf("%s has %d of %d records: %v", topic, tp.Partition(0).HighWatermark(), n, err)
	}
}

func TestKcatGroupResumesWhereItStopped(t *testing.T) {
	h := newHub(t)
	tp := h.topic("wind", 2)
	h.fill(tp.Partition(0), 0, 300, 10, false)
	h.fill(tp.Partition(1), 0, 300, 10, false)
	run := func() int {
		return strings.Count(h.kcat("", "-q", "-G", "readers", "-X", "auto.offset.reset=earliest", "-e", "wind"), "\n")
	}
	if n := run(); n != 600 {
		t.Fatalf("first run: %d records", n)
	}
	if n := run(); n != 0 {
		t.Fatalf("second run: %d records", n)
	}
	h.fill(tp.Partition(1), 300, 50, 10, false)
	if n := run(); n != 50 {
		t.Fatalf("third run: %d records", n)
	}
}
