package edge

import (
	"sync"
	"time"

	"tailrace/storage"
)

// wear follows what the log costs the flash: bytes at the block layer, journal and
// other programs included, and fsyncs. It looks with every tick of housekeeping.
type wear struct {
	medium    medium
	sys       string // root of sysfs
	endurance int64  // bytes the medium stands by its maker's word; 0 = not stated
	started   time.Time
	sectors   int64 // written by the disk before we started; -1 unknown

	mu     sync.Mutex // guards the fields below
	recent []wearSample
}

type wearSample struct {
	at     time.Time
	fsyncs uint64
}

// wearWindow is what fsyncs per minute are counted over.
const wearWindow = time.Minute

func newWear(m medium, sys string, endurance int64, now time.Time) *wear {
	w := &wear{medium: m, sys: sys, endurance: endurance, started: now, sectors: -1}
	if s, ok := m.sectorsWritten(sys); ok {
		w.sectors = s
	}
	return w
}

// tick takes a sample.
func (w *wear) tick(now time.Time, st storage.Stats) {
	s := wearSample{at: now}
	for _, c := range st.Classes {
		s.fsyncs += c.Fsyncs
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recent = append(w.recent, s)
	for len(w.recent) > 2 && now.Sub(w.recent[1].at) >= wearWindow {
		w.recent = w.recent[1:]
	}
}

// FlashStatus is what the log costs the medium.
type FlashStatus struct {
	// DeviceBytes were written by the whole disk since start, other programs and the
	// file system's journal included; -1 unknown.
	DeviceBytes int64 `json:"device_bytes"`
	// PerPayloadByte is device bytes per byte that devices sent (values of records); 0
	// while unknown.
	PerPayloadByte float64 `json:"device_bytes_per_payload_byte"`
	// FsyncsPerMinute over the last minute.
	FsyncsPerMinute float64 `json:"fsyncs_per_minute"`
	// EnduranceBytes is storage.endurance; LifeYears what it lasts from new at the
	// rate since start, 0 while unknown: without an endurance, or in the first minute.
	EnduranceBytes int64   `json:"endurance_bytes,omitempty"`
	LifeYears      float64 `json:"life_years,omitempty"`
}

const (
	year         = 365 * 24 * time.Hour
	maxLifeYears = 1000 // an idle disk lives for ever
)

func (w *wear) status(now time.Time, st storage.Stats) FlashStatus {
	f := FlashStatus{DeviceBytes: -1, EnduranceBytes: w.endurance}
	var payload uint64
	for _, c := range st.Classes {
		payload += c.PayloadBytes
	}
	if s, ok := w.medium.sectorsWritten(w.sys); ok && w.sectors >= 0 {
		f.DeviceBytes = (s - w.sectors) * 512
		if payload > 0 {
			f.PerPayloadByte = float64(f.DeviceBytes) / float64(payload)
		}
		if up := now.Sub(w.started); w.endurance > 0 && up >= time.Minute {
			perYear := float64(f.DeviceBytes) * float64(year) / float64(up)
			f.LifeYears = min(float64(w.endurance)/max(perYear, 1), maxLifeYears)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.recent); n >= 2 {
		a, b := w.recent[0], w.recent[n-1]
		if d := b.at.Sub(a.at); d > 0 {
			f.FsyncsPerMinute = float64(b.fsyncs-a.fsyncs) * float64(time.Minute) / float64(d)
		}
	}
	return f
}
