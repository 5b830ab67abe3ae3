package wire

// Skip says that the node passes over a range of a Want, node to hub: it fell behind by more
// than Want.SkipMS, and goes on with what is newer. The hub asks for the range by another
// Want when everything below it is there.
type Skip struct {
	Want uint32 `cbor:"1,keyasint"`
	From int64  `cbor:"2,keyasint"`
	To   int64  `cbor:"3,keyasint"`
}

// Type implements Message.
func (*Skip) Type() Type { return TypeSkip }
