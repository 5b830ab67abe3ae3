package devices

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// RegistryConfig bounds a Registry.
type RegistryConfig struct {
	// Node is the name of the node the devices were seen by.
	Node string
	// MaxDevices is how many devices are remembered; beyond it those not seen for
	// the longest time are forgotten (and counted). Default 10,000.
	MaxDevices int
	// RefreshEvery is how often a device that keeps sending is written again; a new
	// device is written at the next Save. Default 15 min: last-seen after a crash is
	// at most that old, and the flash is spared.
	RefreshEvery time.Duration
}

// Registry remembers the devices of one node: first seen, last seen, counts and
// rate. It is an account of what was accepted since each device was first met, not
// a ledger: after a crash counts may be up to RefreshEvery behind.
//
// The hot path is Device.Seen, three atomic operations; the lock is taken only
// when a route is made, and by readers.
type Registry struct {
	cfg RegistryConfig

	mu      sync.Mutex // guards the fields below
	devices map[string]*Device
	lastAt  time.Time // of the last Tick
	evicted uint64
	gone    []string // forgotten, but still in the durable state: deleted by the next Save
}

// Device is one device's account. A pointer may be kept for ever: when the
// registry has forgotten the device, Seen says so and the caller asks again.
type Device struct {
	id      string
	first   int64 // ms since 1970
	last    atomic.Int64
	count   atomic.Uint64
	bytes   atomic.Uint64
	evicted atomic.Bool

	// Guarded by Registry.mu.
	tickCount  uint64  // count at the last Tick
	rate       float64 // records/s, smoothed over about a minute
	savedCount uint64
	savedAt    int64 // ms; 0 = never
}

// DeviceInfo is what the registry knows of a device.
type DeviceInfo struct {
	Device    string    `json:"device"`
	Node      string    `json:"node"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
	Records   uint64    `json:"records"`
	Bytes     uint64    `json:"bytes"`
	Rate      float64   `json:"rate_per_s"` // mean of about the last minute
}

// NewRegistry returns an empty registry.
func NewRegistry(c RegistryConfig) *Registry {
	if c.MaxDevices == 0 {
		c.MaxDevices = 10_000
	}
	if c.RefreshEvery == 0 {
		c.RefreshEvery = 15 * time.Minute
	}
	return &Registry{cfg: c, devices: make(map[string]*Device)}
}

// maxDeviceName keeps a hostile name from becoming a large state entry; longer
// names are cut for the registry only, never in the record's key.
const maxDeviceName = 256

// Device returns the device's account, new if it was not known.
func (r *Registry) Device(id string, now time.Time) *Device {
	if len(id) > maxDeviceName {
		id = id[:maxDeviceName]
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.devices[id]; d != nil {
		return d
	}
	r.makeRoom()
	d := &Device{id: id, first: now.UnixMilli()}
	d.last.Store(d.first)
	r.devices[id] = d
	return d
}

// Seen accounts for accepted records, the last of which arrived then. False: the
// registry has forgotten this device meanwhile; nothing was counted, ask
// Registry.Device again.
func (d *Device) Seen(arrivalMillis int64, records, bytes int) bool {
	if d.evicted.Load() {
		return false
	}
	d.count.Add(uint64(records))
	d.bytes.Add(uint64(bytes))
	if d.last.Load() < arrivalMillis {
		d.last.Store(arrivalMillis)
	}
	return true
}

// makeRoom forgets the sixteenth of the devices not seen for the longest time,
// so that a flood of names costs O(log n) each and not a scan each.
func (r *Registry) makeRoom() {
	if len(r.devices) < r.cfg.MaxDevices {
		return
	}
	all := make([]*Device, 0, len(r.devices))
	for _, d := range r.devices {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *Device) int { return cmp.Compare(a.last.Load(), b.last.Load()) })
	for _, d := range all[:max(1, len(all)/16)] {
		d.evicted.Store(true)
		delete(r.devices, d.id)
		r.evicted++
		if d.savedAt != 0 {
			r.gone = append(r.gone, d.id)
		}
	}
}

// Tick brings rates up to date; call it every few seconds.
func (r *Registry) Tick(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dt := now.Sub(r.lastAt).Seconds()
	first := r.lastAt.IsZero()
	r.lastAt = now
	if dt <= 0 {
		return
	}
	weight := 1 - math.Exp(-dt/60)
	for _, d := range r.devices {
		n := d.count.Load()
		if !first {
			d.rate += weight * (float64(n-d.tickCount)/dt - d.rate)
		}
		d.tickCount = n
	}
}

// Len returns how many devices are known; Evicted how many were forgotten for lack of room.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.devices)
}

func (r *Registry) Evicted() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.evicted
}

// List returns up to limit devices in order of name, after the given name ("" =
// from the start), so that a long list is read in pages.
func (r *Registry) List(after string, limit int) []DeviceInfo {
	r.mu.Lock()
	names := make([]string, 0, len(r.devices))
	for id := range r.devices {
		if id > after {
			names = append(names, id)
		}
	}
	slices.Sort(names)
	names = names[:min(max(limit, 0), len(names))]
	out := make([]DeviceInfo, 0, len(names))
	for _, id := range names {
		out = append(out, r.info(r.devices[id]))
	}
	r.mu.Unlock()
	return out
}

// Get returns one device.
func (r *Registry) Get(id string) (DeviceInfo, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.devices[id]
	if !ok {
		return DeviceInfo{}, false
	}
	return r.info(d), true
}

func (r *Registry) info(d *Device) DeviceInfo {
	return DeviceInfo{
		Device: d.id, Node: r.cfg.Node,
		FirstSeen: time.UnixMilli(d.first).UTC(), LastSeen: time.UnixMilli(d.last.Load()).UTC(),
		Records: d.count.Load(), Bytes: d.bytes.Load(), Rate: math.Round(d.rate*1000) / 1000,
	}
}

// saved is the durable form: CBOR, keys are numbers and never change their meaning.
type saved struct {
	First   int64  `cbor:"1,keyasint"` // ms since 1970
	Last    int64  `cbor:"2,keyasint"`
	Records uint64 `cbor:"3,keyasint"`
	Bytes   uint64 `cbor:"4,keyasint"`
}

// Save calls emit for each device that has to be written: the new ones, and those
// whose written account is older than RefreshEvery (all that changed, if all).
// A nil value says: delete the entry, the device was forgotten for lack of room.
func (r *Registry) Save(now time.Time, all bool, emit func(id string, value []byte)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range r.gone {
		if r.devices[id] == nil { // else it came back and is written below
			emit(id, nil)
		}
	}
	r.gone = nil
	ms := now.UnixMilli()
	for _, d := range r.devices {
		n := d.count.Load()
		due := d.savedAt == 0 || all || ms-d.savedAt >= r.cfg.RefreshEvery.Milliseconds()
		if n == d.savedCount || !due {
			continue
		}
		v, err := cbor.Marshal(saved{First: d.first, Last: d.last.Load(), Records: n, Bytes: d.bytes.Load()})
		if err != nil {
			continue // four integers always encode
		}
		d.savedCount, d.savedAt = n, ms
		emit(d.id, v)
	}
}

// Load takes what Save wrote. When more devices come back than there is room for,
// it returns the names that were forgotten for the caller to delete.
func (r *Registry) Load(entries func(yield func(id string, value []byte) bool)) (forgotten []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*Device
	for id, value := range entries {
		var s saved
		if uerr := cbor.Unmarshal(value, &s); uerr != nil {
			err = fmt.Errorf("registry entry of device %q: %w", id, uerr)
			forgotten = append(forgotten, id)
			continue
		}
		d := &Device{id: id, first: s.First, tickCount: s.Records, savedCount: s.Records, savedAt: s.Last}
		d.last.Store(s.Last)
		d.count.Store(s.Records)
		d.bytes.Store(s.Bytes)
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *Device) int { return cmp.Compare(b.last.Load(), a.last.Load()) })
	for i, d := range all {
		if i >= r.cfg.MaxDevices {
			forgotten = append(forgotten, d.id)
			continue
		}
		r.devices[d.id] = d
	}
	return forgotten, err
}
