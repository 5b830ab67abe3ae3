package kafka_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
	"tailrace/uplink/hub/kafka"
)

func TestMalformedFramesCostOnlyTheirConnection(t *testing.T) {
	h := newHub(t)
	h.topic("wind", 1)
	head := func(size uint32, key, version int16) []byte {
		b := binary.BigEndian.AppendUint32(nil, size)
		b = binary.BigEndian.AppendUint16(b, uint16(key))
		b = binary.BigEndian.AppendUint16(b, uint16(version))
		return binary.BigEndian.AppendUint32(b, 1)
	}
	body := func(b []byte, rest ...byte) []byte { return append(b, rest...) }
	for what, in := range map[string][]byte{
		"huge size":                      head(0xe0000000, 18, 0),
		"a claim of 2 GiB":               head(0x7fffffff, 0, 9),
		"size beyond the limit":          head(8<<20+1, 0, 9),
		"size too small":                 head(4, 18, 0),
		"unknown key":                    body(head(20, 999, 0), make([]byte, 12)...),
		"key that kmsg knows, we do not": body(head(20, 33, 1), make([]byte, 12)...),
		"negative key":                   body(head(20, -1, 0), make([]byte, 12)...),
		"version too high":               body(head(20, 3, 99), make([]byte, 12)...),
		"fetch version too low":          body(head(20, 1, 3), make([]byte, 12)...),
		"metadata of 2 MiB":              head(2<<20, 3, 9),
		"array longer than the frame":    body(head(14, 3, 1), 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff),
		"body cut":                       body(head(14, 1, 11), 0xff, 0xff, 0, 0, 0, 0),
		"tagged fields without end":      body(head(16, 3, 9), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff),
		"an HTTP request":                []byte("GET / HTTP/1.1\r\nHost: hub\r\n\r\n"),
		"a TLS handshake":                {0x16, 3, 1, 0, 0xf0, 1, 0, 0, 0xec, 3, 3, 0, 0, 0, 0, 0},
	} {
		r := h.raw()
		if _, err := r.nc.Write(in); err != nil {
			t.Fatal(err)
		}
		r.closed(what)
	}
	ask[*kmsg.MetadataResponse](h.raw(), kmsg.NewPtrMetadataRequest(), 9)
}

func TestAnnouncedBytesAreNotAllocated(t *testing.T) {
	h := newHub(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 50 {
		r := h.raw()
		b := frame(produceRequest("wind", 0, nil), 1)
		binary.BigEndian.PutUint32(b, 8<<20) // 400 MiB announced, nothing comes
		r.nc.Write(b)
	}
	ask[*kmsg.MetadataResponse](h.raw(), kmsg.NewPtrMetadataRequest(), 9)
	runtime.ReadMemStats(&after)
	if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > 20<<20 {
		t.Fatalf("%d MiB allocated", grown>>20)
	}
}

func TestTooManyConnectionsAreClosedAtOnce(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.MaxConns = 3 })
	var rs []*raw
	for range 3 {
		r := h.raw()
		ask[*kmsg.ApiVersionsResponse](r, kmsg.NewPtrApiVersionsRequest(), 0)
		rs = append(rs, r)
	}
	h.raw().closed("a fourth connection")
	rs[0].nc.Close()
	await(t, "the place of the first", func() bool { return h.srv.Conns() < 3 })
	ask[*kmsg.ApiVersionsResponse](h.raw(), kmsg.NewPtrApiVersionsRequest(), 0)
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.IdleTimeout = 50 * time.Millisecond })
	r := h.raw()
	ask[*kmsg.ApiVersionsResponse](r, kmsg.NewPtrApiVersionsRequest(), 0)
	r.closed("idle")
}

func TestHalfARequestIsCut(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.TransferTimeout = 50 * time.Millisecond })
	r := h.raw()
	b := frame(fetchRequest("wind", 0, 0), 1)
	r.nc.Write(b[:len(b)-3])
	r.closed("half a request")
}

func TestAdvertisedAddress(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.Advertised = "hub.example:19092" })
	resp := ask[*kmsg.MetadataResponse](h.raw(), kmsg.NewPtrMetadataRequest(), 9)
	if b := resp.Brokers[0]; b.Host != "hub.example" || b.Port != 19092 {
		t.Fatalf("%+v", b)
	}
}

func TestConfigSaysEverythingThatIsWrong(t *testing.T) {
	_, err := kafka.NewServer(kafka.Config{Advertised: "nohost", MaxFrameBytes: 10, MaxConns: -1})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"store", "nohost", "max frame bytes 10", "max conns -1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
}

func TestTopicsAreCreatedOnDemandOnlyWhenConfigured(t *testing.T) {
	ask1 := func(h *hub, allow bool) int16 {
		req := sample(3, 9, [16]byte{}).(*kmsg.MetadataRequest)
		req.AllowAutoTopicCreation = allow
		return ask[*kmsg.MetadataResponse](h.raw(), req, 9).Topics[0].ErrorCode
	}
	if code := ask1(newHub(t), true); code != 3 {
		t.Errorf("not configured: %d", code)
	}
	h := newHub(t, func(c *kafka.Config) { c.AutoCreate = &storage.TopicConfig{Partitions: 4} })
	if code := ask1(h, false); code != 3 {
		t.Errorf("not asked for: %d", code)
	}
	if code := ask1(h, true); code != 0 {
		t.Errorf("asked for: %d", code)
	}
	if tp, ok := h.store.Topic("wind"); !ok || len(tp.Partitions()) != 4 {
		t.Error("topic is not there")
	}
}

func TestReadOnlyRefusesWriting(t *testing.T) {
	h := newHub(t, func(c *kafka.Config) { c.ReadOnly = true })
	h.topic("wind", 1)
	for _, key := range []int16{0, 19, 20, 22} {
		v := kafka.Versions()[key][1]
		resp := ask[kmsg.Response](h.raw(), sample(key, v, [16]byte{}), v)
		if c := codes(resp); len(c) != 1 || c[0] == 0 {
			t.Errorf("%s: %v", kmsg.NameForKey(key), c)
		}
	}
}

func TestMetricsCount(t *testing.T) {
	set := metrics.NewSet()
	h := newHub(t, func(c *kafka.Config) { c.Metrics = set })
	h.topic("wind", 1)
	r := h.raw()
	ask[*kmsg.ProduceResponse](r, produceRequest("wind", 0, batchOf("a", "b")), 9)
	ask[*kmsg.FetchResponse](r, fetchRequest("wind", 0, 99), 9)
	var out bytes.Buffer
	set.WritePrometheus(&out)
	for _, want := range []string{
		`tailrace_hub_kafka_requests_total{api="Fetch"} 1`,
		`tailrace_hub_kafka_errors_total{api="Fetch",error="OFFSET_OUT_OF_RANGE"} 1`,
		"tailrace_hub_kafka_produced_records_total 2",
		"tailrace_hub_kafka_connections 1",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is missing in\n%s", want, out.String())
		}
	}
}

func TestTLSListenerIsServed(t *testing.T) {
	cert := selfSigned(t)
	var seen *tls.ConnectionState
	store := openStore(t, t.TempDir())
	srv, err := kafka.NewServer(kafka.Config{Store: store, Authorize: func(p kafka.Peer, _ kafka.Operation, _ string) bool {
		seen = p.TLS
		return true
	}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- srv.Serve(ctx, ln) }()
	h := &hub{t: t, store: store, srv: srv, addr: ln.Addr().String()}
	h.fill(h.topic("wind", 1).Partition(0), 0, 1000, 100, false)
	nc, err := tls.Dial("tcp", h.addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	r := &raw{t: t, nc: nc, br: newReader(nc)}
	if n, _, _ := records(t, part(ask[*kmsg.FetchResponse](r, fetchRequest("wind", 0, 0), 11), 0, 0)); n != 1000 || seen == nil {
		t.Fatalf("%d records, TLS %v", n, seen != nil)
	}
	nc.Close()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// FuzzConnection: whatever a client sends, the server neither panics nor
// allocates much, and ends the connection when the client does.
func FuzzConnection(f *testing.F) {
	var all []byte
	for key, vs := range kafka.Versions() {
		for _, v := range []int16{vs[0], vs[1]} {
			if key == 0 && v < 3 {
				v = 3
			}
			req := sample(key, v, [16]byte{1})
			if fr, ok := req.(*kmsg.FetchRequest); ok {
				fr.MaxWaitMillis = 0
			}
			if g, ok := req.(*kmsg.JoinGroupRequest); ok {
				g.Group, g.SessionTimeoutMillis, g.ProtocolType = "g", 6000, "consumer"
				p := kmsg.NewJoinGroupRequestProtocol()
				p.Name = "range"
				g.Protocols = append(g.Protocols, p)
			}
			req.SetVersion(v)
			b := frame(req, 1)
			f.Add(b)
			all = append(all, b...)
		}
	}
	f.Add(all)
	store := openStore(f, f.TempDir())
	if _, err := store.CreateTopic("wind", storage.TopicConfig{Partitions: 1}); err != nil {
		f.Fatal(err)
	}
	srv, err := kafka.NewServer(kafka.Config{Store: store, RebalanceDelay: -1, TransferTimeout: time.Second})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		client, server := net.Pipe()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { srv.ServeConn(ctx, server); close(done) }()
		go io.Copy(io.Discard, client)
		client.SetWriteDeadline(time.Now().Add(time.Second))
		client.Write(in)
		client.Close()
		cancel() // ends waiting fetches and joins
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the connection does not end")
		}
	})
}
