package hub_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/uplink/hub"
	"tailrace/uplink/hub/relay/kafkatest"
	"tailrace/uplink/link"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// fill is publish for many: large records, many in a batch.
func (s *site) fill(topic string, n, size int) {
	s.t.Helper()
	p := s.topic(topic)
	pad := strings.Repeat("x", size)
	for n > 0 {
		a := s.store.NewAppend("")
		for i := range min(n, 200) {
			off := p.Next() + int64(i)
			if err := a.Record(p, 1_700_000_000_000+off*1000, []byte("wtg"), fmt.Appendf(nil, `{"n":%d,"pad":"%x%s"}`, off, off*7919%65537, pad), nil); err != nil {
				s.t.Fatal(err)
			}
		}
		if err := s.store.Commit(context.Background(), a); err != nil {
			s.t.Fatal(err)
		}
		n -= min(n, 200)
	}
}

// migrate starts tailrace hub migrate.
func migrate(t *testing.T, args ...string) (cmd *exec.Cmd, out, errs *bytes.Buffer) {
	t.Helper()
	cmd, out, errs = exec.Command(binary(t, "tailrace"), append([]string{"hub", "migrate", "-o", "json"}, args...)...), new(bytes.Buffer), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out, errs
}

// TestMigrateGoesOnWhereEverybodyWas: nodes send to an embedded hub, which stops; what it
// holds is moved into a cluster, with a kill -9 in the middle, while the nodes store; a hub on the
// cluster goes on with them. Every record is there once and in order, a consumer group
// goes on at its record, and losses and completeness are what they were.
func TestMigrateGoesOnWhereEverybodyWas(t *testing.T) {
	k := brokers(t)
	dir := certs(t, "n0", "n1", "n2")
	data := filepath.Join(t.TempDir(), "data")
	oldYAML := hubYAML(t, dir, data, "")
	newYAML := hubYAML(t, dir, filepath.Join(t.TempDir(), "data2"), clusterYAML(k, "moved"))
	old := startDaemon(t, oldYAML)
	var sites []*site
	const before, away, after = 3000, 500, 200
	for _, n := range []string{"n0", "n1", "n2"} {
		s := newSite(t, dir, n, old.addr)
		s.fill("mill", before, 800)
		s.setMode("mill.live", wire.ModeLiveFirst)
		s.publish("mill.live", 20)
		sites = append(sites, s)
	}
	acked := func(topic string, n int64) {
		t.Helper()
		for _, s := range sites {
			until(t, fmt.Sprint(s.id, " ", topic, " is acknowledged to ", n), func() bool { return s.ackedTo(topic) == n })
		}
	}
	acked("mill", before)
	acked("mill.live", 20)
	x := sites[0]
	x.disconnect()
	x.fill("mill.live", 300, 0) // enough for its companion
	x.publish("mill.lossy", 5)
	gap := []link.GapProposal{{Topic: "mill.lossy", Epoch: x.Inventory().Epochs[0].ID, Gap: wire.Gap{Ranges: ranges.Of(5, 9), Reason: wire.GapEvicted}}}
	x.mu.Lock()
	x.gaps = gap
	x.mu.Unlock()
	x.connect(dir, old.addr)
	var losses struct {
		Losses []hub.LossRow
		Totals []hub.LossTotalInfo
	}
	until(t, "the loss is in the ledger", func() bool {
		getJSON(t, old.url+"/api/v1/losses", &losses)
		return len(losses.Losses) == 1 && x.ackedTo("mill.live") == 320
	})
	x.mu.Lock()
	x.gaps = nil
	x.mu.Unlock()
	x.publish("mill.lossy", 4) // what was declared: the log goes on behind it
	// A group stands in the middle of one partition, at the end of another.
	type at struct {
		partition int
		next      int64 // at the node, of the record to come
		node      string
	}
	var stands []at
	cl, err := kgo.NewClient(kgo.SeedBrokers(old.kafka))
	if err != nil {
		t.Fatal(err)
	}
	var commit kadm.Offsets
	for _, s := range sites {
		rows := records(t, old.url+"/api/v1/topics/mill/records?limit=0&node="+s.id)
		if len(rows) != before {
			t.Fatalf("%d records of %s", len(rows), s.id)
		}
		if r := rows[before/2+11]; s != sites[2] {
			commit.AddOffset("mill", int32(r.Partition), r.Offset, -1)
			stands = append(stands, at{r.Partition, r.Origin.Offset, s.id})
		} else {
			last := rows[before-1]
			commit.AddOffset("mill", int32(last.Partition), last.Offset+1, -1)
			stands = append(stands, at{last.Partition, before, s.id})
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if rs, err := kadm.NewClient(cl).CommitOffsets(ctx, "mill-readers", commit); err != nil || rs.Error() != nil {
		t.Fatal(err, rs.Error())
	}
	cl.Close()
	until(t, "no lag", func() bool {
		var l struct{ Nodes []hub.NodeInfo }
		getJSON(t, old.url+"/api/v1/nodes", &l)
		for _, n := range l.Nodes {
			if n.LagRecords != 0 {
				return false
			}
		}
		return len(l.Nodes) == 3
	})
	completeness := func(url string) string {
		var l struct{ Nodes []hub.NodeInfo }
		getJSON(t, url+"/api/v1/nodes", &l)
		var b strings.Builder
		for _, n := range l.Nodes {
			fmt.Fprintf(&b, "%s stored %d lost %d\n", n.Node, n.Stored, n.Lost)
			for _, p := range n.Topics {
				fmt.Fprintf(&b, "  %s/%d in %s/%d: complete to %d, %s, stored %d lost %d backfilled %d\n", p.Topic, p.Partition, p.CentralTopic, p.CentralPartition, p.CompleteTo, p.CompleteTime, p.Stored, p.Lost, p.Backfilled)
			}
		}
		return b.String()
	}
	was := completeness(old.url)
	old.stop()
	for _, s := range sites {
		s.disconnect()
		s.fill("mill", away, 800) // stored, and forwarded later
	}

	both := []string{"--from", oldYAML, "--to", newYAML, "--step", "65536"}
	dry, out, errs := migrate(t, append(both, "--dry-run")...)
	if err := dry.Wait(); err != nil || !strings.Contains(out.String(), `"done":false`) {
		t.Fatalf("dry run: %v %s%s", err, out, errs)
	}
	if n := migrationRows(t, k, "moved"); n != 0 {
		t.Fatalf("a dry run wrote %d rows", n)
	}
	first, _, _ := migrate(t, append(slices.Clone(both[:4]), "--step", "4096")...) // small steps: there is much to do when it is killed
	until(t, "it has begun to copy", func() bool { return migrationRows(t, k, "moved") >= 4 })
	first.Process.Kill()
	first.Wait()
	refused := exec.Command(binary(t, "tailrace-hub"), "-config", newYAML)
	if b, err := refused.CombinedOutput(); err == nil || !strings.Contains(string(b), "run tailrace hub migrate again") {
		t.Fatalf("a hub starts on a half-moved cluster: %v %s", err, b)
	}
	second, out, errs := migrate(t, both...)
	var m hub.Migration
	if err := second.Wait(); err != nil || json.Unmarshal(out.Bytes(), &m) != nil || !m.Done || !m.Resumed || m.Nodes != 3 {
		t.Fatalf("the second run: %v %s%s", err, out, errs)
	}
	if m.Records == 0 || m.Records >= 3*before {
		t.Errorf("the second run copied %d records: the first was to have copied some, not all", m.Records)
	}
	if b, err := exec.Command(binary(t, "tailrace-hub"), "-config", oldYAML).CombinedOutput(); err == nil || !strings.Contains(string(b), "were moved into a Kafka cluster") {
		t.Errorf("the embedded hub starts again: %v %s", err, b)
	}
	for _, p := range m.Topics {
		for _, q := range p.Parts {
			if q.Copied != q.End {
				t.Errorf("%s/%d: copied to %d of %d", p.Name, q.Partition, q.Copied, q.End)
			}
		}
	}

	d := startDaemon(t, newYAML)
	until(t, "the ledger is read", func() bool {
		var l struct{ Losses []hub.LossRow }
		getJSON(t, d.url+"/api/v1/losses", &l)
		return len(l.Losses) == 1 && l.Losses[0] == losses.Losses[0]
	})
	if is := completeness(d.url); is != was {
		t.Errorf("before:\n%safter:\n%s", was, is)
	}
	for _, s := range sites {
		s.connect(dir, d.addr)
		s.fill("mill", after, 800)
	}
	acked("mill", before+away+after)
	rs := auditTopic(t, k.Addrs, "mill", map[string]int64{"n0": before + away + after, "n1": before + away + after, "n2": before + away + after})
	auditTopic(t, k.Addrs, "mill.lossy", map[string]int64{"n0": 5})
	auditTopic(t, k.Addrs, "mill.live", map[string]int64{"n0": 20, "n1": 20, "n2": 20})
	if n := len(committed(t, k.Addrs, "mill.live.backfill", 300)); n != 300 {
		t.Errorf("%d records of the companion, want 300", n)
	}
	// The group goes on at its record.
	cl, err = kgo.NewClient(kgo.SeedBrokers(k.Addrs...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	offs, err := kadm.NewClient(cl).FetchOffsets(ctx, "mill-readers")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stands {
		o, ok := offs.Lookup("mill", int32(s.partition))
		if !ok {
			t.Errorf("the group has no offset in partition %d", s.partition)
			continue
		}
		for _, r := range rs {
			if r.Partition == int32(s.partition) && r.Offset >= o.At {
				if want := fmt.Sprintf(`{"n":%d,`, s.next); !strings.HasPrefix(string(r.Value), want) {
					t.Errorf("the group goes on at %.12s of partition %d, it stood at %s of %s", r.Value, s.partition, want, s.node)
				}
				break
			}
		}
	}
	again, out, errs := migrate(t, both...)
	if err := again.Wait(); err == nil || !strings.Contains(errs.String(), "stop them first") {
		t.Errorf("a migration beside hubs: %v %s%s", err, out, errs)
	}
}

// migrationRows is how many rows the migration has committed.
func migrationRows(t *testing.T, k *kafkatest.Cluster, fleet string) (n int64) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(k.Addrs...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, "__"+fleet+"_migration")
	if err != nil {
		return 0
	}
	ends.Each(func(o kadm.ListedOffset) { n += max(0, o.Offset) })
	return n
}
