package mqtt

import (
	"encoding/binary"
	"math/bits"
)

// hash64 is XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md). Its values are
// on disk in the windows of clients. An own copy, since the standard library has no
// fast 64-bit hash with a fixed result.
func hash64(seed uint64, b []byte) uint64 {
	const (
		p1 uint64 = 11400714785074694791
		p2 uint64 = 14029467366897019727
		p3 uint64 = 1609587929392839161
		p4 uint64 = 9650029242287828579
		p5 uint64 = 2870177450012600261
	)
	n := uint64(len(b))
	round := func(acc, in uint64) uint64 { return bits.RotateLeft64(acc+in*p2, 31) * p1 }
	var h uint64
	if len(b) >= 32 {
		s1, s2 := seed, seed
		s1 += p1
		s1 += p2
		s2 += p2
		v1, v2, v3, v4 := s1, s2, seed, seed-p1
		for len(b) >= 32 {
			v1 = round(v1, binary.LittleEndian.Uint64(b))
			v2 = round(v2, binary.LittleEndian.Uint64(b[8:]))
			v3 = round(v3, binary.LittleEndian.Uint64(b[16:]))
			v4 = round(v4, binary.LittleEndian.Uint64(b[24:]))
			b = b[32:]
		}
		h = bits.RotateLeft64(v1, 1) + bits.RotateLeft64(v2, 7) + bits.RotateLeft64(v3, 12) + bits.RotateLeft64(v4, 18)
		for _, v := range [4]uint64{v1, v2, v3, v4} {
			h = (h^round(0, v))*p1 + p4
		}
	} else {
		h = seed + p5
	}
	h += n
	for ; len(b) >= 8; b = b[8:] {
		h = bits.RotateLeft64(h^round(0, binary.LittleEndian.Uint64(b)), 27)*p1 + p4
	}
	if len(b) >= 4 {
		h = bits.RotateLeft64(h^uint64(binary.LittleEndian.Uint32(b))*p1, 23)*p2 + p3
		b = b[4:]
	}
	for _, c := range b {
		h = bits.RotateLeft64(h^uint64(c)*p5, 11) * p1
	}
	h = (h ^ h>>33) * p2
	h = (h ^ h>>29) * p3
	return h ^ h>>32
}

// contentHash covers what a re-send repeats: topic, payload, QoS and retain. An
// alias and the properties are left out: a client may not repeat the former.
func contentHash(topicHash uint64, qos byte, retain bool, payload []byte) uint64 {
	seed := topicHash + uint64(qos)
	if retain {
		seed += 1 << 32
	}
	return hash64(seed, payload)
}
