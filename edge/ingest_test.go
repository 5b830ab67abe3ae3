package edge_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
	"tailrace/storage"
	"tailrace/storage/record"
)

func TestPublishesOfAKnownTopicDoNotAllocate(t *testing.T) {
	n := node(t, plain+`
routes: [{topic: "wind/{t}", stream: wind, key: "{t}", time: {encoding: json, field: ts, format: unix_ms}}]
default: {reject: true}
`)
	be := n.Backend()
	c := &mqtt.Client{ID: "dev"}
	var slot any
	p := &mqtt.Publish{Topic: []byte("wind/1"), Name: "wind/1", Route: &slot, Payload: []byte(`{"ts":1700000000000,"p":1.5}`), QoS: 1, Arrival: time.Now(),
		Props: &packet.MessageProps{ContentType: []byte("application/json"), User: []packet.UserProperty{{Key: []byte("k"), Value: []byte("v")}}}}
	done := make(chan error, 1)
	fn := func(err error) { done <- err }
	round := func() {
		b := be.Begin(c)
		for range 100 {
			if err := b.Add(p); err != nil {
				t.Fatal(err)
			}
		}
		b.Commit(fn)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		round()
	}
	// Nothing for a burst either; pools that the collector empties are made anew.
	a := testing.AllocsPerRun(200, round)
	if a > 2 {
		t.Fatalf("%.0f allocations for a burst of 100 publishes", a)
	}
	if got := len(values(t, n, "wind")); got < 7000 {
		t.Fatalf("%d stored", got)
	}
}

func TestHeadersAreWhatConsumersAreTold(t *testing.T) {
	n := node(t, plain+`
routes: [{topic: "wind/{t}", stream: wind, key: "{t}", time: {encoding: json, field: ts, format: unix_ns}}]
default: {stream: rest, key: "-"}
`)
	be := n.Backend()
	c := &mqtt.Client{ID: "dev-7"}
	arrival := time.UnixMilli(1700000000000)
	var s1, s2 any
	b := be.Begin(c)
	if err := b.Add(&mqtt.Publish{Name: "wind/T1", Route: &s1, Payload: []byte(`{"ts":1699999999123456789}`), QoS: 2, Retain: true, Arrival: arrival,
		Props: &packet.MessageProps{ContentType: []byte("j"), Response: []byte("r"), Correlation: []byte{0}, User: []packet.UserProperty{{Key: []byte("k"), Value: []byte("1")}, {Key: []byte("k"), Value: nil}}}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Add(&mqtt.Publish{Name: "x", Route: &s2, Arrival: arrival}); err != nil { // no payload at all
		t.Fatal(err)
	}
	done := make(chan error, 1)
	b.Commit(func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	read := func(topic string) record.Record {
		tp, _ := n.Store().Topic(topic)
		raw, _, err := tp.Partition(0).Read(nil, 0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		batch, _, err := record.Next(raw)
		if err != nil || batch.Verify() != nil {
			t.Fatal(err, batch.Verify())
		}
		it := batch.Iter(nil)
		if !it.Next() {
			t.Fatal(it.Err())
		}
		return *it.Record()
	}
	r := read("wind")
	var got []string
	for _, h := range r.Headers[:len(r.Headers)-1] {
		got = append(got, h.Key+"="+string(h.Value))
	}
	want := []string{"mqtt.topic=wind/T1", "mqtt.client=dev-7", "mqtt.qos=2", "mqtt.retain=1", "mqtt.content-type=j", "mqtt.response-topic=r", "mqtt.correlation=\x00",
		"mqtt.user.k=1", "mqtt.user.k=", "event.time.ns=" + string(binary.BigEndian.AppendUint64(nil, 1699999999123456789))}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("headers %q\nwant    %q", got, want)
		}
	}
	if last := r.Headers[len(r.Headers)-1].Key; last != "tr" || string(r.Key) != "T1" || r.Timestamp != 1699999999123 {
		t.Errorf("last header %q, key %q, time %d", last, r.Key, r.Timestamp)
	}
	r = read("rest")
	if r.Key != nil || r.Value == nil || len(r.Value) != 0 || r.Timestamp != 1700000000000 || len(r.Headers) != 4 {
		t.Errorf("%+v", r)
	}
}

func TestBurstsOfManyConnectionsAreAllAnswered(t *testing.T) {
	n := node(t, plain+"default: {stream: s}\n")
	be := n.Backend()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := &mqtt.Client{ID: string(rune('a' + g))}
			var slot any
			answered := make(chan error, 50)
			for range 50 {
				b := be.Begin(c)
				for range 10 {
					if err := b.Add(&mqtt.Publish{Name: "t", Route: &slot, Payload: []byte("x"), Arrival: time.Now()}); err != nil {
						t.Error(err)
					}
				}
				b.Window(c.ID, nil)
				b.Commit(func(err error) { answered <- err })
			}
			for range 50 {
				if err := <-answered; err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if got := len(values(t, n, "s")); got != 4000 {
		t.Fatalf("%d stored, want 4000", got)
	}
}

// The window that knows re-sends must never be ahead of the records: a re-send of a
// record that was not stored would be taken for a known one.
func TestWindowOfAFailedClassIsNotKept(t *testing.T) {
	n := node(t, strings.Replace(plain, "[{name: main, when_full: reject, commit_interval: 0s}]",
		"[{name: main, when_full: reject}, {name: bulk, when_full: reject, segment_size: 64KiB, max_size: 384KiB}]", 1)+`
routes: [{topic: "bulk/#", stream: bulk}]
topics: [{match: bulk, class: bulk}]
default: {stream: main}
`)
	be := n.Backend()
	c := &mqtt.Client{ID: "d"}
	var slot, slot2 any
	done := make(chan error, 1)
	commit := func(window string) error {
		b := be.Begin(c)
		if err := b.Add(&mqtt.Publish{Name: "bulk/a", Route: &slot, Payload: make([]byte, 8000), QoS: 1, Arrival: time.Now()}); err != nil {
			return err
		}
		if err := b.Add(&mqtt.Publish{Name: "other", Route: &slot2, Payload: []byte("x"), QoS: 1, Arrival: time.Now()}); err != nil {
			return err
		}
		if window != "" {
			b.SetState(mqtt.KindSession, window, []byte("s"))
		}
		b.Commit(func(err error) { done <- err })
		return <-done
	}
	stored := 0
	for ; ; stored++ {
		id := fmt.Sprint("w", stored)
		err := commit(id)
		_, kept := n.Store().State(storage.KindSession, id)
		if kept != (err == nil) {
			t.Fatalf("burst %d: %v, and its state kept: %v", stored, err, kept)
		}
		if err != nil {
			break
		}
		if stored > 200 {
			t.Fatal("a budget of 384 KiB takes 200 records of 8 KB")
		}
	}
	if a, b := len(values(t, n, "bulk")), len(values(t, n, "main")); a != stored || b != stored {
		t.Fatalf("%d bursts acknowledged; bulk has %d records, main %d", stored, a, b)
	}
}

func BenchmarkBurst(b *testing.B) {
	n := node(b, plain+"routes: [{topic: \"wind/{t}\", stream: wind, key: \"{t}\", time: {encoding: json, field: ts, format: unix_ms}}]\ndefault: {reject: true}\n")
	be := n.Backend()
	c := &mqtt.Client{ID: "dev"}
	var slot any
	p := &mqtt.Publish{Name: "wind/1", Route: &slot, Payload: []byte(`{"ts":1700000000000,"power_kw":919.5,"wind_ms":7.5,"rpm":1547.6}`), QoS: 1, Arrival: time.Now()}
	b.ReportAllocs()
	done := make(chan error, 1)
	fn := func(err error) { done <- err }
	const burst = 1000
	for b.Loop() {
		bu := be.Begin(c)
		for range burst {
			bu.Add(p)
		}
		bu.Commit(fn)
		<-done
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*burst), "ns/publish")
}
