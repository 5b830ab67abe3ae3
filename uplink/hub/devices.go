package hub

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/devices"
	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/storage/storehttp"
)

// deviceTracker keeps the account of devices at the centre: node and record
// key, first and last seen, counts and rate. It reads what was stored, behind
// the ingest and never in its way; what it has not read yet after a restart is
// not counted. It describes, nothing depends on it.
//
// With a Kafka cluster it looks at what this hub has committed instead, copied from the
// relay's hands: offered is bounded, and what does not fit is not counted.
type deviceTracker struct {
	h       *Hub
	reg     *devices.Registry
	offered chan deviceBatch
	waiting atomic.Int64 // bytes in offered
	stale   atomic.Bool  // own holds devices that the registry may hold anew

	// Owned by run.
	own  map[string]*devices.Device    // by node/key: saves the registry's lock per record
	next map[storage.PartitionID]int64 // offset to read next
}

type deviceBatch struct {
	node  string
	batch record.Batch
}

const (
	maxOffered    = 256
	maxWaiting    = 16 << 20  // bytes of them
	devicePrefix  = "device/" // followed by node/key in the key of a KindRegistry entry
	maxDevices    = 100_000
	maxDeviceName = 256 // bytes of node/key; longer keys are no device names
	deviceTick    = 10 * time.Second
)

func newDeviceTracker(h *Hub) (*deviceTracker, error) {
	d := &deviceTracker{h: h, reg: devices.NewRegistry(devices.RegistryConfig{MaxDevices: maxDevices}),
		own: map[string]*devices.Device{}, next: map[storage.PartitionID]int64{}, offered: make(chan deviceBatch, maxOffered)}
	if h.clustered() {
		return d, nil // what was saved comes with the shards
	}
	forgotten, err := d.reg.Load(func(yield func(string, []byte) bool) {
		h.store.RangeState(storage.KindRegistry, func(key string, value []byte) bool {
			if id, ok := cutPrefix(key, devicePrefix); ok {
				return yield(id, value)
			}
			return true
		})
	})
	if err != nil {
		h.log.Warn("device account not readable, begun anew for some", "error", err, "entries", len(forgotten))
	}
	for _, t := range h.store.Topics() {
		for _, p := range t.Partitions() {
			d.next[p.ID()] = p.HighWatermark()
		}
	}
	return d, nil
}

// offer is a committed batch of a node; it never waits.
func (d *deviceTracker) offer(node string, b record.Batch) {
	if len(d.offered) == cap(d.offered) {
		return
	}
	n := int64(len(b))
	if d.waiting.Add(n) > maxWaiting {
		d.waiting.Add(-n)
		return
	}
	select {
	case d.offered <- deviceBatch{node, slices.Clone(b)}:
	default:
		d.waiting.Add(-n)
	}
}

// load takes over what another hub has saved of a device.
func (d *deviceTracker) load(key string, value []byte) {
	id, _ := cutPrefix(key, devicePrefix)
	d.stale.Store(true)
	if _, err := d.reg.Load(func(yield func(string, []byte) bool) { yield(id, value) }); err != nil {
		d.h.log.Warn("device account not readable, begun anew for one", "error", err)
	}
}

// run follows the store until ctx ends.
func (d *deviceTracker) run(ctx context.Context) {
	moved := make(chan struct{}, 1) // 1: a signal says "look again"
	defer d.h.store.Subscribe(moved)()
	tick := time.NewTicker(deviceTick)
	defer tick.Stop()
	// Half a second between two looks: the account may be late, and reading
	// many small batches one by one would cost more than it is worth.
	pause := time.NewTicker(500 * time.Millisecond)
	defer pause.Stop()
	var buf []byte
	dec := record.NewDecompressor(0)
	defer dec.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.reg.Tick(d.h.cfg.Now())
			d.save(false)
			continue
		case b := <-d.offered:
			d.waiting.Add(-int64(len(b.batch)))
			d.count(b.node, b.batch, dec)
			continue
		case <-moved:
		}
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		for _, t := range d.h.store.Topics() {
			if storehttp.Internal(t.Name()) {
				continue
			}
			for _, p := range t.Partitions() {
				buf = d.follow(ctx, p, buf, dec)
			}
		}
	}
}

func (d *deviceTracker) follow(ctx context.Context, p *storage.Partition, buf []byte, dec *record.Decompressor) []byte {
	off := max(d.next[p.ID()], p.Start())
	for off < p.HighWatermark() && ctx.Err() == nil {
		out, next, err := p.Read(buf[:0], off, 1<<20)
		if err != nil || next <= off {
			if err != nil {
				d.h.log.Debug("device account skips records", "topic", p.Topic().Name(), "partition", p.Index(), "offset", off, "error", err)
			}
			off = p.HighWatermark()
			break
		}
		buf, off = out, next
		for rest := out; len(rest) > 0; {
			var b record.Batch
			if b, rest, err = record.Next(rest); err != nil {
				break
			}
			if o, ok := p.Origin(b.BaseOffset()); ok { // else produced at the hub, by no device
				d.count(o.Node, b, dec)
			}
		}
	}
	d.next[p.ID()] = off
	return buf
}

func (d *deviceTracker) count(node string, b record.Batch, dec *record.Decompressor) {
	arrival := d.h.cfg.Now()
	if d.stale.Swap(false) {
		clear(d.own)
	}
	var name []byte
	it := b.Iter(dec)
	for it.Next() {
		r := it.Record()
		if len(r.Key) == 0 || len(node)+1+len(r.Key) > maxDeviceName {
			continue
		}
		name = append(append(append(name[:0], node...), '/'), r.Key...)
		dev := d.own[string(name)]
		if dev == nil || !dev.Seen(arrival.UnixMilli(), 1, len(r.Value)) {
			if len(d.own) >= maxDevices {
				clear(d.own)
			}
			dev = d.reg.Device(strings.ToValidUTF8(string(name), "\ufffd"), arrival)
			d.own[string(name)] = dev
			dev.Seen(arrival.UnixMilli(), 1, len(r.Value))
		}
	}
}

// save writes what changed; all = everything that did.
func (d *deviceTracker) save(all bool) {
	if d.h.clustered() {
		var left sync.WaitGroup
		d.reg.Save(d.h.cfg.Now(), all, func(id string, value []byte) {
			if node, _, _ := strings.Cut(id, "/"); d.h.here(node) {
				left.Add(1)
				d.h.central.saveEntry(node, devicePrefix+id, slices.Clone(value), func(error) { left.Done() })
			}
		})
		if all { // the last time: each is told, stored or not
			left.Wait()
		}
		return
	}
	a := d.h.store.NewAppend("")
	n := 0
	d.reg.Save(d.h.cfg.Now(), all, func(id string, value []byte) {
		a.Set(storage.KindRegistry, devicePrefix+id, value)
		n++
	})
	if n == 0 {
		return
	}
	d.h.store.Submit(a, func(_ *storage.Append, err error) {
		if err != nil {
			d.h.log.Warn("device account not saved", "error", err)
		}
	})
}

// DeviceInfo is a device as GET /api/v1/devices shows it.
type DeviceInfo struct {
	Device    string  `json:"device"`
	Node      string  `json:"node"`
	FirstSeen string  `json:"first_seen"`
	LastSeen  string  `json:"last_seen"` // arrival at the hub
	Silent    float64 `json:"silent_seconds"`
	Records   uint64  `json:"records"`
	Bytes     uint64  `json:"bytes"`
	Rate      float64 `json:"rate_per_s"`
}

// Devices lists devices by node and name, from after the one named.
func (h *Hub) Devices(after string, limit int) (list []DeviceInfo, next string) {
	now := h.cfg.Now()
	list = []DeviceInfo{}
	all := h.devices.reg.List(after, limit)
	for _, d := range all {
		node, name, _ := strings.Cut(d.Device, "/")
		if next = d.Device; !h.here(node) { // it was: another hub serves it now
			continue
		}
		list = append(list, DeviceInfo{Device: name, Node: node, FirstSeen: stamp(d.FirstSeen.UnixMilli()), LastSeen: stamp(d.LastSeen.UnixMilli()),
			Silent: max(0, now.Sub(d.LastSeen).Seconds()), Records: d.Records, Bytes: d.Bytes, Rate: d.Rate})
	}
	if len(all) < limit {
		next = ""
	}
	return list, next
}
