package wire

import "fmt"

// CommandLocate asks a node where the records of a span of time lie: Command.Args is a
// Locate, CommandResult.Body a Located.
const CommandLocate = "locate"

// Locate names a topic and the span of time [From, To), ms since 1970.
type Locate struct {
	Topic string `cbor:"1,keyasint"`
	From  int64  `cbor:"2,keyasint"`
	To    int64  `cbor:"3,keyasint"`
}

// MaxLocated is how many ranges an answer has at most; ranges near each other are joined.
const MaxLocated = 1024

// Located says where they lie, in whole batches, and what lies before everything that the
// node still has when the span reaches back that far: asked for, that is declared lost.
type Located struct {
	Ranges []PartitionRanges `cbor:"1,keyasint"`
	Oldest int64             `cbor:"2,keyasint,omitempty"` // time of the oldest record held, ms since 1970; 0 = none
}

// EncodeLocate and EncodeLocated give the bytes of a command and its answer.
func EncodeLocate(v Locate) ([]byte, error)   { return encMode.Marshal(v) }
func EncodeLocated(v Located) ([]byte, error) { return encMode.Marshal(v) }

// DecodeLocate takes what EncodeLocate gave.
func DecodeLocate(b []byte) (v Locate, err error) {
	if err := decMode.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("%w: locate: %v", ErrMalformed, err)
	}
	if v.To <= v.From {
		return v, bad("locate from %d to %d", v.From, v.To)
	}
	return v, name("topic", v.Topic, 1)
}

// DecodeLocated takes what EncodeLocated gave.
func DecodeLocated(b []byte) (v Located, err error) {
	if len(b) > MaxMessageBytes {
		return v, bad("%d bytes", len(b))
	}
	if err := decMode.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("%w: located: %v", ErrMalformed, err)
	}
	n := 0
	for i := range v.Ranges {
		if n += len(v.Ranges[i].Ranges); n > 2*MaxLocated {
			return v, bad("more than %d ranges", 2*MaxLocated)
		}
		if !v.Ranges[i].Ranges.Valid() {
			return v, bad("ranges %s", v.Ranges[i].Ranges)
		}
	}
	return v, nil
}
