package wire

// Refusals are the partitions that the node may not write at this hub, hub to node. A
// later list replaces an earlier one. Nothing is asked for of them; everything else goes on.
type Refusals struct {
	Refused []Refusal `cbor:"1,keyasint"`
}

// Refusal is one partition and why.
type Refusal struct {
	Partition uint32 `cbor:"1,keyasint"` // PartitionInfo.ID
	Reason    string `cbor:"2,keyasint"` // for people
}

// Type implements Message.
func (*Refusals) Type() Type { return TypeRefusals }
