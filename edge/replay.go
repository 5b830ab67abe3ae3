package edge

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"tailrace/edge/bridge"
	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
	"tailrace/storage"
	"tailrace/storage/record"
)

// replay lets the MQTT server read stored messages again (mqtt.Log). Messages of
// bridges are not handed to subscribers live and not here.
type replay struct {
	store   *storage.Store
	bridges map[string]bool // client ids
}

func bridgeClients(bs []bridge.Config) map[string]bool {
	m := map[string]bool{}
	for _, b := range bs {
		m[b.ClientID] = true
	}
	return m
}

// Ends implements mqtt.Log.
func (r replay) Ends(f func(part uint32, next int64)) {
	for _, t := range r.store.Topics() {
		for _, p := range t.Partitions() {
			f(uint32(p.ID()), p.HighWatermark())
		}
	}
}

const replayBytes = 128 << 10

// Read implements mqtt.Log.
func (r replay) Read(part uint32, from int64, f func(off int64, m *mqtt.Stored) bool) (int64, error) {
	p, ok := r.store.PartitionByID(storage.PartitionID(part))
	if !ok {
		return from, nil // the topic was deleted
	}
	from = max(from, p.Start())
	if from >= p.HighWatermark() {
		return from, nil
	}
	buf, next, err := p.Read(nil, from, replayBytes)
	if errors.Is(err, storage.ErrOffsetOutOfRange) && from < p.Start() { // deleted meanwhile
		return p.Start(), nil
	}
	if err != nil {
		return from, err
	}
	d := record.NewDecompressor(0)
	defer d.Close()
	for len(buf) > 0 {
		b, rest, err := record.Next(buf)
		if err != nil {
			return from, err
		}
		buf = rest
		it := b.Iter(d)
		for it.Next() {
			rec := it.Record()
			if rec.Offset < from {
				continue
			}
			from = rec.Offset + 1
			if m, ok := storedMessage(rec); ok && !r.bridges[m.Client] && !f(rec.Offset, &m) {
				return from, nil
			}
		}
		if err := it.Err(); err != nil {
			return from, err
		}
		from = max(from, b.NextOffset())
	}
	return max(from, next), nil
}

// storedMessage reads the headers that a node writes; see headers.go.
func storedMessage(rec *record.Record) (m mqtt.Stored, ok bool) {
	for _, h := range rec.Headers {
		switch key := string(h.Key); key {
		case headerTopic:
			m.Topic, ok = string(h.Value), true
		case headerClient:
			m.Client = string(h.Value)
		case headerQoS:
			if len(h.Value) == 1 {
				m.QoS = min(h.Value[0]-'0', 2)
			}
		case headerRetain:
			m.Retain = true
		case headerContentType:
			m.Props.ContentType = h.Value
		case headerResponse:
			m.Props.Response = h.Value
		case headerCorrelation:
			m.Props.Correlation = h.Value
		case headerFormat:
			m.Props.HasFormat, m.Props.Format = true, 1
		case headerExpires:
			if ms, err := strconv.ParseInt(string(h.Value), 10, 64); err == nil {
				m.Expires = time.UnixMilli(ms)
			}
		default:
			if name, is := strings.CutPrefix(key, headerUser); is {
				m.Props.User = append(m.Props.User, packet.UserProperty{Key: []byte(name), Value: h.Value})
			}
		}
	}
	m.Payload = rec.Value
	return m, ok
}
