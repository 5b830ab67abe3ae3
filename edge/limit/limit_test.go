package limit

import (
	"net/netip"
	"testing"
	"time"
)

func TestBucketsRefillPerAddress(t *testing.T) {
	b := Buckets{Rate: 2, Burst: 3, Max: 100}
	now := time.Unix(1e9, 0)
	a, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for i := range 3 {
		if !b.Has(a, now) || !b.Take(a, now) {
			t.Fatalf("token %d", i)
		}
	}
	if b.Has(a, now) || b.Take(a, now) {
		t.Fatal("a fourth token")
	}
	if !b.Take(other, now) {
		t.Fatal("the other address pays")
	}
	if now = now.Add(500 * time.Millisecond); !b.Take(a, now) || b.Take(a, now) {
		t.Fatal("one token comes back in half a second")
	}
	if b.Take(a, now.Add(-time.Hour)) {
		t.Fatal("a clock turned back gives tokens")
	}
	if now = now.Add(2 * time.Hour); !b.Take(a, now) {
		t.Fatal("refilled")
	}
	mapped := netip.MustParseAddr("::ffff:10.0.0.9")
	if Key(mapped) != netip.MustParseAddr("10.0.0.9") || Key(netip.MustParseAddr("2001:db8::1")) != Key(netip.MustParseAddr("2001:db8::2")) {
		t.Error("keys")
	}
}

func TestBucketsAreBounded(t *testing.T) {
	b := Buckets{Rate: 1, Burst: 1, Max: 100}
	now := time.Unix(1e9, 0)
	for i := range 10_000 {
		b.Take(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now)
	}
	if len(b.m) > 100 {
		t.Fatalf("%d remembered", len(b.m))
	}
}
