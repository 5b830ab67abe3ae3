package devices_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"tailrace/devices"
)

var start = time.UnixMilli(1700000000000).UTC()

func TestRegistryKeepsFirstLastCountsAndRate(t *testing.T) {
	r := devices.NewRegistry(devices.RegistryConfig{Node: "node-1"})
	d := r.Device("T01", start)
	r.Tick(start)
	now := start
	for range 60 * 10 { // 2 records/s for ten minutes
		now = now.Add(time.Second)
		d.Seen(now.UnixMilli(), 1, 100)
		d.Seen(now.UnixMilli(), 1, 50)
		r.Tick(now)
	}
	d.Seen(start.UnixMilli(), 1, 0) // an older arrival never moves last-seen back
	got, ok := r.Get("T01")
	if !ok || !got.FirstSeen.Equal(start) || !got.LastSeen.Equal(now) || got.Records != 1201 || got.Bytes != 90000 || got.Node != "node-1" {
		t.Fatalf("%+v", got)
	}
	if got.Rate < 1.9 || got.Rate > 2.1 {
		t.Fatalf("rate %v, want about 2/s", got.Rate)
	}
}

func TestRegistryIsBoundedAndForgetsTheLongestSilent(t *testing.T) {
	r := devices.NewRegistry(devices.RegistryConfig{MaxDevices: 100})
	old := r.Device("old", start)
	for i := range 1000 {
		at := start.Add(time.Duration(i+1) * time.Second)
		r.Device(fmt.Sprintf("d%04d", i), at).Seen(at.UnixMilli(), 1, 1)
	}
	if n := r.Len(); n > 100 {
		t.Fatalf("%d devices, limit 100", n)
	}
	if old.Seen(start.UnixMilli(), 1, 1) {
		t.Fatal("a forgotten device still counts: its records would be in no account")
	}
	if _, ok := r.Get("d0999"); !ok {
		t.Fatal("the newest device is missing")
	}
	if r.Evicted() != 1001-uint64(r.Len()) {
		t.Fatalf("%d evicted, %d left of 1001", r.Evicted(), r.Len())
	}
}

func TestRegistrySurvivesARestartAndSparesTheFlash(t *testing.T) {
	r := devices.NewRegistry(devices.RegistryConfig{MaxDevices: 4, RefreshEvery: 10 * time.Minute})
	disk, writes := map[string][]byte{}, 0
	save := func(now time.Time, all bool) {
		r.Save(now, all, func(id string, v []byte) {
			writes++
			if v == nil {
				delete(disk, id)
			} else {
				disk[id] = v
			}
		})
	}
	d := r.Device("a", start)
	for m := range 30 { // half an hour, one record and one Save a minute
		now := start.Add(time.Duration(m) * time.Minute)
		d.Seen(now.UnixMilli(), 1, 10)
		save(now, false)
	}
	if writes != 3 {
		t.Fatalf("%d writes in 30 minutes at a refresh of 10, want 3", writes)
	}
	save(start.Add(30*time.Minute), true)
	restored := devices.NewRegistry(devices.RegistryConfig{MaxDevices: 4})
	if forgotten, err := restored.Load(maps.All(disk)); err != nil || len(forgotten) != 0 {
		t.Fatal(forgotten, err)
	}
	a, _ := r.Get("a")
	b, _ := restored.Get("a")
	if a.Records != 30 || b.Records != 30 || a.FirstSeen != b.FirstSeen || a.LastSeen != b.LastSeen {
		t.Fatalf("before %+v after %+v", a, b)
	}

	// A flood of names leaves no more entries on disk than the registry may hold.
	for i := range 50 {
		at := start.Add(time.Hour + time.Duration(i)*time.Second)
		r.Device(fmt.Sprint("x", i), at).Seen(at.UnixMilli(), 1, 1)
		save(at, false)
	}
	if len(disk) > 4 {
		t.Fatalf("%d durable entries for 4 devices", len(disk))
	}
	if forgotten, err := devices.NewRegistry(devices.RegistryConfig{MaxDevices: 2}).Load(maps.All(disk)); err != nil || len(forgotten) != len(disk)-2 {
		t.Fatalf("smaller registry: forgotten %v, %v", forgotten, err)
	}
	if forgotten, err := restored.Load(maps.All(map[string][]byte{"bad": {0xff}})); err == nil || len(forgotten) != 1 {
		t.Fatalf("damaged entry: %v, %v", forgotten, err)
	}
}

func TestSeenDoesNotAllocate(t *testing.T) {
	d := devices.NewRegistry(devices.RegistryConfig{}).Device("a", start)
	if n := testing.AllocsPerRun(100, func() { d.Seen(5, 1, 5) }); n != 0 {
		t.Fatal(n)
	}
}
