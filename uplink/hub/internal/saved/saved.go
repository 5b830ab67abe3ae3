// Package saved is how a hub writes the values that it keeps about itself, on its own disk
// and in a cluster.
package saved

import "github.com/fxamacker/cbor/v2"

// canonical is deterministic CBOR (RFC 8949, 4.2.1).
var canonical = must(cbor.CoreDetEncOptions().EncMode())

// bounded limits what a damaged value can make us allocate and refuses duplicate keys.
var bounded = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 1 << 18, MaxMapPairs: 1 << 16, MaxNestedLevels: 16}.DecMode())

func must[T any](v T, err error) T {
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return v
}

// Encode is for the hub's own types, which always encode.
func Encode(v any) []byte { return must(canonical.Marshal(v)) }

// Decode reads what Encode wrote; anything else is an error and costs bounded memory.
func Decode(b []byte, v any) error { return bounded.Unmarshal(b, v) }
