package hub_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/uplink/hub"
	"tailrace/uplink/link"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

// clusterHub is a hub on the cluster; nodes dial where the group says it is.
func clusterHub(t *testing.T, certDir string, brokers []string) hub.Config {
	c := hubConfig(t, certDir)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.PacketConn = pc
	c.Kafka = hub.KafkaConfig{}
	c.Store.Kafka = &hub.ClusterConfig{Brokers: brokers, Name: "two", Address: pc.LocalAddr().String(), Shards: 4, LongestOutage: hub.Duration(24 * time.Hour), Linger: hub.Duration(10 * time.Millisecond)}
	return c
}

// committed is what a read_committed reader that knows nothing of the hub finds in a topic.
func committed(t *testing.T, brokers []string, topic string, n int) (out []*kgo.Record) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for len(out) < n {
		fs := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%s: %d of %d records", topic, len(out), n)
		}
		out = append(out, fs.Records()...)
	}
	return out
}

// TestTwoHubsOnAKafkaCluster: nodes find the hub that has their shard, what is acknowledged
// is in the cluster once and in order, a hub that stops is taken over from, and a loss is
// in the ledger of both.
func TestTwoHubsOnAKafkaCluster(t *testing.T) {
	k := brokers(t)
	names := []string{"n0", "n1", "n2", "n3", "n4", "n5"}
	certDir := certs(t, names...)
	ca, cb := clusterHub(t, certDir, k.Addrs), clusterHub(t, certDir, k.Addrs)
	a, urlA, stopA := startHub(t, ca)
	b, urlB, _ := startHub(t, cb)
	addrA, _, _ := a.Addrs()
	addrB, _, _ := b.Addrs()
	var sites []*site
	for _, n := range names {
		sites = append(sites, newSite(t, certDir, n, addrA)) // who belongs to the other is sent there
	}
	total := 0
	send := func(n int) {
		t.Helper()
		total += n
		for _, s := range sites {
			s.publish("gust", n)
		}
		for _, s := range sites {
			until(t, fmt.Sprint(s.id, " is acknowledged to ", total), func() bool { return s.ackedTo("gust") == int64(total) })
		}
	}
	send(50)
	var na, nb struct{ Nodes []hub.NodeInfo }
	until(t, "every node is at one hub", func() bool {
		getJSON(t, urlA+"/api/v1/nodes", &na)
		getJSON(t, urlB+"/api/v1/nodes", &nb)
		return len(na.Nodes) > 0 && len(nb.Nodes) > 0 && len(na.Nodes)+len(nb.Nodes) == len(names)
	})
	for _, n := range append(na.Nodes, nb.Nodes...) {
		if n.State != "connected" || n.Stored != 50 || n.LagRecords != 0 {
			t.Errorf("node %s: %s, %d stored, %d behind", n.Node, n.State, n.Stored, n.LagRecords)
		}
	}
	// What is of a node is asked of the hub that serves it.
	for _, n := range nb.Nodes {
		resp, err := http.Post(urlA+"/api/v1/nodes/"+n.Node+"/accept", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("node %s of the other hub: %s", n.Node, resp.Status)
		}
	}
	for _, s := range sites {
		s.disconnect()
		s.connect(certDir, addrA, addrB)
	}
	stopA()
	send(300)
	getJSON(t, urlB+"/api/v1/nodes", &nb)
	if len(nb.Nodes) != len(names) {
		t.Errorf("the hub that is left shows %d nodes", len(nb.Nodes))
	}
	next, place := map[string]int{}, map[string]int32{}
	rs := committed(t, k.Addrs, "gust", total*len(names))
	if len(rs) != total*len(names) {
		t.Errorf("%d records, want %d", len(rs), total*len(names))
	}
	for _, r := range rs {
		node := string(r.Headers[len(r.Headers)-1].Value[:2]) // the node's own mark begins with its name
		if p, ok := place[node]; ok && p != r.Partition {
			t.Errorf("%s is in two partitions", node)
		}
		place[node] = r.Partition
		if want := fmt.Sprintf(`{"n":%d,`, next[node]); !strings.HasPrefix(string(r.Value), want) {
			t.Errorf("%s: %q where %s belongs", node, r.Value, want)
		}
		next[node]++
	}
	if len(next) != len(names) {
		t.Errorf("records of %d nodes", len(next))
	}
	// A loss is in the ledger of every hub.
	s := sites[0]
	s.mu.Lock()
	s.gaps = []link.GapProposal{{Topic: "gust", Epoch: s.Inventory().Epochs[0].ID, Gap: wire.Gap{Ranges: ranges.Of(int64(total), int64(total)+12), Reason: wire.GapEvicted}}}
	s.mu.Unlock()
	s.disconnect()
	s.connect(certDir, addrB)
	_, urlA, _ = startHub(t, clusterHub(t, certDir, k.Addrs))
	for _, url := range []string{urlA, urlB} {
		var l struct{ Losses []hub.LossRow }
		until(t, "the loss is shown", func() bool {
			getJSON(t, url+"/api/v1/losses", &l)
			return len(l.Losses) == 1 && l.Losses[0].Node == "n0" && l.Losses[0].Records == 12
		})
	}
}
