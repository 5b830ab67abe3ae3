package record

import "fmt"

// Ascending takes a concatenation of batches apart and checks every one: its CRC, and that their
// offsets ascend. The batches are parts of b.
func Ascending(b []byte) ([]Batch, error) {
	var list []Batch
	next := int64(-1)
	for len(b) > 0 {
		batch, rest, err := Next(b)
		if err != nil {
			return nil, err
		}
		if err := batch.Verify(); err != nil {
			return nil, err
		}
		if batch.BaseOffset() < next {
			return nil, fmt.Errorf("batch at offset %d follows offset %d: batches must ascend", batch.BaseOffset(), next)
		}
		next = batch.NextOffset()
		list = append(list, batch)
		b = rest
	}
	return list, nil
}
