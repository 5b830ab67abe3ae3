package scenario

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"tailrace/storage"
	"tailrace/storage/record"
)

// given is what a consumer may have read of the hub before its disk went back: under a
// leader epoch an offset holds one record, for ever. Where an offset is given out again the
// epoch is a higher one; by that Kafka's consumers know.
type given struct {
	epoch   int32 // of the hub's store
	highest int32 // leader epoch of a record
	records int64
	at      map[place][sha256.Size]byte
}

type place struct {
	partition   int
	offset      int64
	leaderEpoch int32
}

func givenOut(s *storage.Store) (*given, error) {
	g := &given{epoch: s.EpochNumber(), at: map[place][sha256.Size]byte{}}
	d := record.NewDecompressor(16 << 20)
	defer d.Close()
	err := eachBatch(s, stream, func(p *storage.Partition, b record.Batch) error {
		it := b.Iter(d)
		for it.Next() {
			r := it.Record()
			h := sha256.New()
			h.Write(r.Value)
			h.Write(bytes.Join([][]byte{r.Key, header(r, storage.OriginHeader)}, []byte{0}))
			g.records++
			g.highest = max(g.highest, b.LeaderEpoch())
			g.at[place{p.Index(), r.Offset, b.LeaderEpoch()}] = [sha256.Size]byte(h.Sum(nil))
		}
		return it.Err()
	})
	return g, err
}

// judgeGiven compares what the hub holds in the end with what it gave out before its disk was
// replaced.
func (w *world) judgeGiven(central *storage.Store) error {
	if w.before == nil {
		return nil
	}
	now, err := givenOut(central)
	if err != nil {
		return err
	}
	for at, sum := range w.before.at {
		if have, ok := now.at[at]; ok && have != sum {
			return fmt.Errorf("the hub gave out two records as partition %d, offset %d under the leader epoch %d; it was in %d with %d records and is in %d now", at.partition, at.offset, at.leaderEpoch, w.before.epoch, w.before.records, now.epoch)
		}
	}
	// Above those under which it gave something out: it may have begun others that nobody saw.
	if w.before.records > 0 && now.epoch <= w.before.highest {
		return fmt.Errorf("the hub's disk went back and it goes on as the old one: leader epoch %d, it was in %d and had %d records, of %d at most", now.epoch, w.before.epoch, w.before.records, w.before.highest)
	}
	return nil
}

// notedBy tells whether a node's log has the note of the hub's store.
func notedBy(node *storage.Store, store [16]byte) bool {
	v, _ := node.State(storage.KindMeta, "hub-store")
	return bytes.HasPrefix(v, store[:])
}
