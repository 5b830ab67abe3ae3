package scenario

import (
	"fmt"

	"tailrace/firmware-sim/ledger"
	"tailrace/storage"
	"tailrace/storage/record"
)

// eachBatch reads a topic from its first batch to its last, partition after partition.
func eachBatch(s *storage.Store, topic string, f func(*storage.Partition, record.Batch) error) error {
	t, ok := s.Topic(topic)
	if !ok {
		return nil
	}
	for _, p := range t.Partitions() {
		for off := p.Start(); off < p.HighWatermark(); {
			b, next, err := p.Read(nil, off, 1<<20)
			if err == nil && next <= off {
				err = fmt.Errorf("nothing below the high watermark %d", p.HighWatermark())
			}
			for err == nil && len(b) > 0 {
				var batch record.Batch
				if batch, b, err = record.Next(b); err == nil {
					err = f(p, batch)
				}
			}
			if err != nil {
				return fmt.Errorf("read %s/%d at %d: %w", topic, p.Index(), off, err)
			}
			off = next
		}
	}
	return nil
}

// eachRecord reads a topic from its first record to its last.
func eachRecord(s *storage.Store, topic string, f func(*storage.Partition, *record.Record)) error {
	d := record.NewDecompressor(16 << 20)
	defer d.Close()
	return eachBatch(s, topic, func(p *storage.Partition, batch record.Batch) error {
		it := batch.Iter(d)
		for it.Next() {
			f(p, it.Record())
		}
		return it.Err()
	})
}

func header(r *record.Record, key string) []byte {
	for _, h := range r.Headers {
		if h.Key == key {
			return h.Value
		}
	}
	return nil
}

// observe reads a store from its first record to its last and shows every record to the
// ledger.
func observe(s *storage.Store, obs *ledger.Observer) error { return observeTopic(s, stream, obs, 0) }

// observeTopic shows one topic to the ledger, its partitions counted from a number: the
// partitions of two topics are not the same.
func observeTopic(s *storage.Store, name string, obs *ledger.Observer, from int64) error {
	return eachRecord(s, name, func(p *storage.Partition, r *record.Record) {
		obs.SeePayload(string(header(r, "mqtt.topic")), r.Value, ledger.Position{Partition: from + int64(p.Index()), Offset: r.Offset})
	})
}
