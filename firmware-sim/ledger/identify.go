package ledger

import (
	"bytes"
	"errors"
	"strconv"

	"github.com/fxamacker/cbor/v2"
)

var (
	// ErrNoIdentity: the payload carries no boot and sequence.
	ErrNoIdentity = errors.New("payload carries no boot and sequence number")
	// ErrWill: the payload is a last will, which a server publishes and no device numbers.
	ErrWill = errors.New("payload is a last will")
)

// Identify reads boot and sequence from a payload of the simulated devices, JSON
// or CBOR: a map with "boot" (hexadecimal text) and "seq" (from 1).
func Identify(payload []byte) (boot, seq uint64, err error) {
	if len(payload) > 0 && payload[0]>>5 == 5 { // major type 5: a CBOR map
		var m struct {
			Boot string `cbor:"boot"`
			Seq  uint64 `cbor:"seq"`
			Will bool   `cbor:"will"`
		}
		if cbor.Unmarshal(payload, &m) != nil {
			return 0, 0, ErrNoIdentity
		}
		if m.Will {
			return 0, 0, ErrWill
		}
		boot, err = strconv.ParseUint(m.Boot, 16, 64)
		if err != nil || m.Seq == 0 {
			return 0, 0, ErrNoIdentity
		}
		return boot, m.Seq, nil
	}
	// The devices print these members themselves, near the front and without
	// spaces before the colon, so a search is exact and costs no parse.
	b, ok1 := member(payload, `"boot":"`)
	s, ok2 := member(payload, `"seq":`)
	if !ok1 || !ok2 {
		if bytes.Contains(payload, []byte(`"will":true`)) {
			return 0, 0, ErrWill
		}
		return 0, 0, ErrNoIdentity
	}
	for len(b) > 0 && b[0] != '"' {
		d := hexDigit(b[0])
		if d < 0 || boot>>60 != 0 {
			return 0, 0, ErrNoIdentity
		}
		boot, b = boot<<4|uint64(d), b[1:]
	}
	s = bytes.TrimLeft(s, " ")
	for len(s) > 0 && s[0] >= '0' && s[0] <= '9' {
		if seq > 1<<59 {
			return 0, 0, ErrNoIdentity
		}
		seq, s = seq*10+uint64(s[0]-'0'), s[1:]
	}
	if seq == 0 {
		return 0, 0, ErrNoIdentity
	}
	return boot, seq, nil
}

func member(p []byte, key string) ([]byte, bool) {
	i := bytes.Index(p, []byte(key))
	if i < 0 {
		return nil, false
	}
	return p[i+len(key):], true
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
