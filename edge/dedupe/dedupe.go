// Package dedupe remembers which sequence numbers of a device are durable: the newest
// of a few boots, and a window of those before. It is a format and pure functions; the
// node keeps it in the log, in the commit of the records themselves.
package dedupe

import "encoding/binary"

// State of one device:
//
//	1 byte  version = 1
//	144 bytes for each boot, the one heard last at the end: boot (8), highest sequence
//	number (8), 128 bytes of bits, bit i of byte j: "highest - (8j+i) is durable"
//
// A delta is boot (8) and sequence number (8), all big endian. Both are on disk: a change
// needs a new version byte.
const (
	version    = 1
	Window     = 1024
	bootBytes  = 16 + Window/8
	MaxBoots   = 4
	DeltaBytes = 16
)

// AppendDelta appends what one record adds.
func AppendDelta(dst []byte, boot, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, boot), seq)
}

// Verdict of Look.
type Verdict uint8

const (
	New    Verdict = iota
	Known          // durable
	TooOld         // before the window: it may be durable
)

// Look asks a state about a sequence number.
func Look(state []byte, boot, seq uint64) Verdict {
	at := find(state, boot)
	if at < 0 {
		return New
	}
	e := state[at : at+bootBytes]
	high := binary.BigEndian.Uint64(e[8:])
	switch {
	case seq > high:
		return New
	case high-seq >= Window:
		return TooOld
	case e[16+(high-seq)/8]&(1<<((high-seq)%8)) != 0:
		return Known
	}
	return New
}

func valid(state []byte) bool {
	return len(state) > 1 && state[0] == version && (len(state)-1)%bootBytes == 0 && len(state) <= 1+MaxBoots*bootBytes
}

// find is where a boot's entry begins, -1 = nowhere.
func find(state []byte, boot uint64) int {
	if !valid(state) {
		return -1
	}
	for at := 1; at < len(state); at += bootBytes {
		if binary.BigEndian.Uint64(state[at:]) == boot {
			return at
		}
	}
	return -1
}

// Fold is the state after a delta. It is pure and total: damaged input gives the state
// without it.
func Fold(old, delta []byte) []byte {
	if !valid(old) {
		old = nil
	}
	out := make([]byte, 1, 1+MaxBoots*bootBytes)
	out[0] = version
	if len(old) > 0 {
		out = append(out, old[1:]...)
	}
	for ; len(delta) >= DeltaBytes; delta = delta[DeltaBytes:] {
		out = add(out, binary.BigEndian.Uint64(delta), binary.BigEndian.Uint64(delta[8:]))
	}
	if len(out) == 1 {
		return old
	}
	return out
}

// add moves the boot to the end and notes seq.
func add(state []byte, boot, seq uint64) []byte {
	var e [bootBytes]byte
	if at := find(state, boot); at >= 0 {
		copy(e[:], state[at:])
		state = append(state[:at], state[at+bootBytes:]...)
	} else {
		if len(state) == 1+MaxBoots*bootBytes {
			state = append(state[:1], state[1+bootBytes:]...) // the boot heard longest ago
		}
		binary.BigEndian.PutUint64(e[:], boot)
		binary.BigEndian.PutUint64(e[8:], seq)
	}
	high := binary.BigEndian.Uint64(e[8:])
	if seq > high {
		shift(e[16:], seq-high)
		binary.BigEndian.PutUint64(e[8:], seq)
		high = seq
	}
	if d := high - seq; d < Window {
		e[16+d/8] |= 1 << (d % 8)
	}
	return append(state, e[:]...)
}

// shift moves the bits to higher distances from the newest.
func shift(b []byte, by uint64) {
	if by >= Window {
		clear(b)
		return
	}
	whole, rest := int(by/8), by%8
	for i := len(b) - 1; i >= 0; i-- {
		var v byte
		if i-whole >= 0 {
			v = b[i-whole] << rest
		}
		if rest > 0 && i-whole-1 >= 0 {
			v |= b[i-whole-1] >> (8 - rest)
		}
		b[i] = v
	}
}
