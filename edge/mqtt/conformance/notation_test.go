package main

import (
	"bytes"
	"testing"
)

func TestNotation(t *testing.T) {
	got, err := parseBytes("F0 r268435455 i7 m1234 s5 'topic' L1 v128 0AfF")
	want := []byte{0xF0, 0xFF, 0xFF, 0xFF, 0x7F, 7, 0x04, 0xD2, 0, 5, 't', 'o', 'p', 'i', 'c', 0, 0, 0, 1, 0x80, 1, 0x0A, 0xFF}
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("% x, %v; want % x", got, err, want)
	}
	for _, s := range []string{"1", "zz", "'open", "i256", "m65536", "vx", "'"} {
		if b, err := parseBytes(s); err == nil {
			t.Errorf("%q is % x", s, b)
		}
	}
}

// Which comes first of a delivery and the answer to its publish is not compared; what comes
// besides is.
func TestLeftOverPacketsAreDifferences(t *testing.T) {
	r := &packetReader{early: [2][][]byte{nil, {{0x30, 0}}}}
	if err := r.nothingLeft(); err == nil {
		t.Error("a delivery too many is not seen")
	}
	if p, err := r.nextOf(true); err != nil || p[0] != 0x30 || r.nothingLeft() != nil {
		t.Errorf("% x, %v", p, err)
	}
}
