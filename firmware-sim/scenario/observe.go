package scenario

import (
	"fmt"

	"tailrace/firmware-sim/ledger"
	"tailrace/storage"
	"tailrace/storage/record"
)

// observe reads a store from its first record to its last and shows every record to the
// ledger.
func observe(s *storage.Store, obs *ledger.Observer) error { return observeTopic(s, stream, obs, 0) }

// observeTopic shows one topic to the ledger, its partitions counted from a number: the
// partitions of two topics are not the same.
func observeTopic(s *storage.Store, name string, obs *ledger.Observer, from int64) error {
	t, ok := s.Topic(name)
	if !ok {
		return nil
	}
	d := record.NewDecompressor(16 << 20)
	defer d.Close()
	for _, p := range t.Partitions() {
		for off := p.Start(); off < p.HighWatermark(); {
			b, next, err := p.Read(nil, off, 1<<20)
			if err != nil {
				return fmt.Errorf("read %s/%d at %d: %w", t.Name(), p.Index(), off, err)
			}
			if next <= off {
				return fmt.Errorf("read %s/%d at %d: nothing below the high watermark %d", t.Name(), p.Index(), off, p.HighWatermark())
			}
			for len(b) > 0 {
				batch, rest, err := record.Next(b)
				if err != nil {
					return fmt.Errorf("read %s/%d at %d: %w", t.Name(), p.Index(), off, err)
				}
				it := batch.Iter(d)
				for it.Next() {
					r := it.Record()
					topic := ""
					for _, h := range r.Headers {
						if h.Key == "mqtt.topic" {
							topic = string(h.Value)
						}
					}
					obs.SeePayload(topic, r.Value, ledger.Position{Partition: from + int64(p.Index()), Offset: r.Offset})
				}
				if it.Err() != nil {
					return it.Err()
				}
				b = rest
			}
			off = next
		}
	}
	return nil
}
