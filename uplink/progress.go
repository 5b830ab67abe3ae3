package uplink

import "tailrace/uplink/wire"

// Progress is what the hub durably holds of one partition of one epoch of a node,
// declared gaps included.
type Progress struct {
	Epoch     wire.ID
	Topic     string
	Partition int
	Held      RangeSet
	Last      *wire.Held // the last batch of Held, as the node stored it; nil = not known, nothing is checked
}
