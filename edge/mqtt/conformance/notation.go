package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// parseBytes reads the notation of mosquitto's wire cases, words between blanks:
//
//	30 0A1B    bytes in hexadecimal
//	i7         one byte, decimal
//	H k m s 7  two bytes, decimal (a number, a keep-alive, a packet id, a length of a string)
//	L7         four bytes, decimal
//	v r 7      a variable byte integer (r: a Remaining Length), also above the largest that MQTT allows
//	'text'     as it is; no blanks within
//
// Cases of before 2026 have hexadecimal only.
func parseBytes(s string) (b []byte, err error) {
	for _, w := range strings.Fields(s) {
		bits := 0
		switch w[0] {
		case 'i':
			bits = 8
		case 'H', 'k', 'm', 's':
			bits = 16
		case 'L':
			bits = 32
		case 'v', 'r':
			bits = 64
		case '\'':
			if len(w) < 2 || w[len(w)-1] != '\'' {
				return nil, fmt.Errorf("text %s does not end", w)
			}
			b = append(b, w[1:len(w)-1]...)
			continue
		default:
			x, err := hex.DecodeString(w)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", w, err)
			}
			b = append(b, x...)
			continue
		}
		n, err := strconv.ParseUint(w[1:], 10, bits)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", w, err)
		}
		switch bits {
		case 8:
			b = append(b, byte(n))
		case 16:
			b = binary.BigEndian.AppendUint16(b, uint16(n))
		case 32:
			b = binary.BigEndian.AppendUint32(b, uint32(n))
		default:
			b = binary.AppendUvarint(b, n) // the same encoding
		}
	}
	return b, nil
}
