// Package wire is the language of the uplink: control messages in deterministic
// CBOR (RFC 8949, 4.2.1) and data frames. PROTOCOL.md beside the package uplink
// is the specification; golden bytes are in testdata/v1.
//
// A control message is
//
//	length uvarint | type uvarint | body: one CBOR map with integer keys
//
// where length counts type and body. Unknown types are skipped, unknown map keys
// are ignored: that is how the protocol grows. Every limit is checked before
// anything is allocated. Decoded values share nothing with the input.
package wire

import (
	"encoding/hex"
	"errors"
	"fmt"

	"tailrace/uplink/ranges"
)

// Version is the protocol version that this package speaks. Hello offers it, Welcome chooses.
const Version = 1

// ALPN is the application protocol of the TLS handshake.
const ALPN = "tailrace/1"

// Limits of the wire. On the wire for good: raising one needs a feature.
const (
	MaxMessageBytes = 1 << 20 // one control message, type and body
	MaxFrameBytes   = 8 << 20 // raw bytes of one data frame; a batch larger than this cannot travel
	MaxNameBytes    = 249     // node id, topic, class: Kafka's limit for topic names
	MaxPartitions   = 8192    // partitions in one Inventory
	MaxEpochs       = 64      // epochs in one Inventory
	MaxRanges       = 8192    // ranges in one set
)

// ErrMalformed is wrapped by every error about bytes that are not the protocol.
var ErrMalformed = errors.New("malformed")

// ID is a random 128-bit name: of a session, a boot, an epoch, a store.
type ID [16]byte

// String is the hexadecimal form.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero says whether id was never set.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalBinary makes an ID a CBOR byte string.
func (id ID) MarshalBinary() ([]byte, error) { return id[:], nil }

// UnmarshalBinary takes exactly 16 bytes.
func (id *ID) UnmarshalBinary(b []byte) error {
	if len(b) != len(id) {
		return fmt.Errorf("%w: an id has 16 bytes, this one %d", ErrMalformed, len(b))
	}
	copy(id[:], b)
	return nil
}

// Lane is a data stream of its own priority.
type Lane uint8

// The lanes, most urgent first. The numbers are on the wire.
const (
	LaneLive     Lane = 0 // new data as it is made
	LaneBackfill Lane = 1 // a gap behind live data that is wanted soon
	LaneBulk     Lane = 2 // the backlog
	Lanes             = 3
)

var laneNames = [Lanes]string{"live", "backfill", "bulk"}

func (l Lane) String() string {
	if int(l) < len(laneNames) {
		return laneNames[l]
	}
	return fmt.Sprintf("lane(%d)", uint8(l))
}

// Codec of a data frame.
type Codec uint8

// The numbers are on the wire.
const (
	CodecNone Codec = 0
	CodecZstd Codec = 1 // one streaming context per stream, one flush per frame

	// CodecTelemetry is package columns: one state per stream. A hub that chose it takes
	// zstd frames on the same stream too, where those are smaller.
	CodecTelemetry Codec = 2
)

// Origin names where records came from, for ever: with an offset it is a position.
type Origin struct {
	Node      string
	Epoch     ID
	Topic     string
	Partition int
	Lane      Lane // how it travels; not part of the identity
	Backfill  bool // what came after it is stored already: it goes to the companion topic; not part of the identity
}

func (o Origin) String() string {
	return fmt.Sprintf("%s/%s/%s/%d", o.Node, o.Epoch.String()[:8], o.Topic, o.Partition)
}

// RangeSet is a set of offsets, see package ranges.
type RangeSet = ranges.Set
