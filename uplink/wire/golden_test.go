package wire_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

var update = flag.Bool("update", false, "rewrite testdata")

func id(b byte) (id wire.ID) {
	for i := range id {
		id[i] = b + byte(i)
	}
	return id
}

// samples has every message, every field set.
func samples() map[string]wire.Message {
	rs := ranges.Set{{From: 0, To: 5}, {From: 7, To: 9}, {From: 1 << 40, To: 1<<40 + 300}}
	clock := wire.Clock{UnixNano: 1_700_000_000_123_456_789, Trusted: true}
	inv := wire.Inventory{
		Epochs: []wire.EpochInfo{{ID: id(1), Number: 1}, {ID: id(2), Parent: id(1), Number: 2, Forks: []wire.ForkPoint{{Topic: "wind", Partition: 1, Offset: 77}}}},
		Partitions: []wire.PartitionInfo{
			{ID: 3, Topic: "wind", Partition: 1, Start: 10, Next: 500, MinTime: 1_700_000_000_000, MaxTime: 1_700_000_900_000, Bytes: 12345, Mode: wire.ModeLiveFirst, Class: "keep"},
			{ID: 4, Topic: "sun", Partition: 0, Start: 0, Next: 0},
		},
	}
	return map[string]wire.Message{
		"hello":          &wire.Hello{Version: 1, MinVersion: 1, Node: "node-1", Session: id(3), Boot: id(4), Sequence: 5, Role: wire.RoleBulk, Clock: clock, Inventory: inv, Codecs: []wire.Codec{wire.CodecZstd, wire.CodecNone}, Features: []string{"x"}, Software: "tailrace 1", Index: 2},
		"welcome":        &wire.Welcome{Version: 1, Session: id(3), StoreID: id(5), StoreEpoch: 7, Clock: clock, Codec: wire.CodecZstd, FrameBytes: 1 << 20, WindowBytes: 1 << 19, Credit: [3]uint64{1, 2, 3}, MaxBulk: 8, HeartbeatMS: 15000, Features: []string{"x"}, Boot: id(6)},
		"inventory":      &inv,
		"want":           &wire.Want{ID: 9, Partition: 3, Epoch: id(1), Ranges: rs, Follow: true, From: 1 << 41, Lane: wire.LaneBackfill, CatchUp: wire.LaneBulk, Rate: 1000, SlowRate: 500, Credit: 1 << 33, Last: &wire.Held{Offset: 99, CRC: 0xdeadbeef}},
		"want-livefirst": &wire.Want{ID: 9, Partition: 3, Epoch: id(1), Follow: true, From: 1 << 41, SkipMS: 3000},
		"skip":           &wire.Skip{Want: 9, From: 1 << 41, To: 1<<41 + 300},
		"cancel":         &wire.Cancel{Want: 9},
		"ack":            &wire.Ack{Acks: []wire.PartitionRanges{{Partition: 3, Epoch: id(1), Ranges: rs}}, Credit: [3]uint64{10, 20, 30}},
		"gap":            &wire.GapReport{Partition: 3, Epoch: id(1), Gaps: []wire.Gap{{Ranges: rs, Reason: wire.GapEvicted, At: 1_700_000_000_000, Detail: "disk budget"}}},
		"fork":           &wire.Fork{Want: 9, Partition: 3, Epoch: id(1), Offset: 99, CRC: 1, Absent: true, Next: 50},
		"status":         &wire.Status{Clock: clock, UptimeSec: 1, DiskBytes: 2, DiskBudget: 3, DiskFree: 4, WrittenBytes: 5, Fsyncs: 6, Devices: 7, Records: 8, Refused: 9, Dropped: 10, Backlog: []wire.Backlog{{Topic: "wind", Partition: 1, Next: 500, Records: 20, Bytes: 3000, OldestMS: 5}, {Topic: "raw", Next: 9, Start: 3, Kept: true}}, ConfigSeen: 11, Notes: []string{"card worn"}, Link: wire.LinkStatus{RTTMicros: 1, Reconnects: 2, BytesSent: 3, BytesLost: 4, SendErrors: 5, InFlightBytes: 6}, Links: []wire.LinkBudget{{Name: "lte", Interface: "wwan0", RateLimit: 1, Monthly: 2, Used: 3, Forecast: 4, EndsMS: 5, Held: "used up"}}},
		"config":         &wire.Config{Version: 3, Body: []byte("a: 1\n")},
		"command":        &wire.Command{ID: 1, Name: "restart", Args: []byte{0xa0}, ExpireMS: 5},
		"commandresult":  &wire.CommandResult{ID: 1, Error: "no", Body: []byte{1}},
		"heartbeat":      &wire.Heartbeat{Sequence: 4, Sent: 5, Reply: true, Clock: clock, Pad: make([]byte, wire.HeartbeatPad)},
		"drain":          &wire.Drain{Reason: "upgrade", Hubs: []string{"b:7443"}, RetryAfterMS: 5000},
		"refusals":       &wire.Refusals{Refused: []wire.Refusal{{Partition: 3, Reason: "no rule allows it"}}},
		"error":          &wire.Error{Code: wire.CodeFenced, Message: "a clone", RetryAfterMS: 60000, Want: 3},
	}
}

func TestEveryTypeHasASample(t *testing.T) {
	seen := map[wire.Type]bool{}
	for _, m := range samples() {
		seen[m.Type()] = true
	}
	for n := wire.TypeHello; n <= wire.TypeSkip; n++ {
		if !seen[n] {
			t.Errorf("no sample of message type %d", n)
		}
	}
}

// golden compares b with testdata/v1/name: hexadecimal, 32 bytes a line.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", "v1", name+".hex")
	var s strings.Builder
	for i := 0; i < len(b); i += 32 {
		s.WriteString(hex.EncodeToString(b[i:min(i+32, len(b))]) + "\n")
	}
	if *update {
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(s.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != s.String() {
		t.Errorf("%s: the bytes on the wire changed; that needs a new version\nhave %swant %s", name, s.String(), want)
	}
}

func TestGoldenMessages(t *testing.T) {
	for name, m := range samples() {
		b, err := wire.Append(nil, m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden(t, name, b)
		got, err := wire.NewReader(bytes.NewReader(b)).Read()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%s: came back as %+v, was %+v", name, got, m)
		}
	}
}

// Cut anywhere, a message is an error, never another message and never a panic.
func TestTruncatedMessages(t *testing.T) {
	for name, m := range samples() {
		b, _ := wire.Append(nil, m)
		for n := 1; n < len(b); n++ {
			if got, err := wire.NewReader(bytes.NewReader(b[:n])).Read(); err == nil {
				t.Errorf("%s cut at byte %d of %d was read as %+v", name, n, len(b), got)
			}
		}
		head := len(b) - bodyLen(b)
		for n := range b[head:] {
			if got, err := wire.Decode(b[head : head+n]); err == nil {
				t.Errorf("%s: body cut at byte %d was decoded as %+v", name, n, got)
			}
		}
	}
}

func bodyLen(b []byte) int {
	n, shift := 0, 0
	for _, c := range b {
		n |= int(c&0x7f) << shift
		if shift += 7; c < 0x80 {
			break
		}
	}
	return n
}

func TestUnknownTypeIsSkippedAndUnknownKeyIgnored(t *testing.T) {
	var b []byte
	b, _ = wire.Append(b, &wire.Unknown{Number: 4711, Body: []byte{0xa0}})
	b, _ = wire.Append(b, &wire.Unknown{Number: 99, Body: nil})
	b = append(b, 7, byte(wire.TypeCancel), 0xa2, 0x01, 0x09, 0x18, 0x63, 0x01) // Cancel{1: 9, 99: 1}
	m, err := wire.NewReader(bytes.NewReader(b)).Read()
	if c, ok := m.(*wire.Cancel); err != nil || !ok || c.Want != 9 {
		t.Errorf("read %+v, %v", m, err)
	}
}

func TestRefusesWhatCannotBe(t *testing.T) {
	ok := samples()
	for name, change := range map[string]func() wire.Message{
		"lane":            func() wire.Message { w := *ok["want"].(*wire.Want); w.Lane = 3; return &w },
		"negative offset": func() wire.Message { w := *ok["want"].(*wire.Want); w.From = -1; return &w },
		"want id zero":    func() wire.Message { w := *ok["want"].(*wire.Want); w.ID = 0; return &w },
		"no session":      func() wire.Message { h := *ok["hello"].(*wire.Hello); h.Session = wire.ID{}; return &h },
		"no node":         func() wire.Message { h := *ok["hello"].(*wire.Hello); h.Node = ""; return &h },
		"long name":       func() wire.Message { h := *ok["hello"].(*wire.Hello); h.Node = strings.Repeat("x", 250); return &h },
		"version 0":       func() wire.Message { h := *ok["hello"].(*wire.Hello); h.Version = 0; return &h },
		"partition twice": func() wire.Message {
			p := wire.PartitionInfo{ID: 1, Topic: "a"}
			return &wire.Inventory{Epochs: []wire.EpochInfo{{ID: id(1)}}, Partitions: []wire.PartitionInfo{p, p}}
		},
		"next below start": func() wire.Message {
			return &wire.Inventory{Epochs: []wire.EpochInfo{{ID: id(1)}}, Partitions: []wire.PartitionInfo{{ID: 1, Topic: "a", Start: 5, Next: 4}}}
		},
		"partition, no epoch":   func() wire.Message { return &wire.Inventory{Partitions: []wire.PartitionInfo{{ID: 1, Topic: "a"}}} },
		"too long a heartbeat":  func() wire.Message { return &wire.Heartbeat{Pad: make([]byte, 5000)} },
		"message over the size": func() wire.Message { return &wire.Config{Body: make([]byte, wire.MaxMessageBytes)} },
	} {
		if _, err := wire.Append(nil, change()); err == nil {
			t.Errorf("%s was encoded", name)
		}
	}
	for name, b := range map[string][]byte{
		"empty message":     {0},
		"length over limit": {0xff, 0xff, 0xff, 0x7f, 1},
		"key twice":         {6, 5, 0xa2, 1, 9, 1, 9},
		"indefinite map":    {5, 5, 0xbf, 1, 9, 0xff},
		"tag":               {5, 5, 0xa1, 1, 0xc1, 9},
		"short id":          {8, 2, 0xa1, 2, 0x44, 1, 2, 3, 4},
		"bytes after":       {5, 5, 0xa1, 1, 9, 0},
	} {
		if m, err := wire.NewReader(bytes.NewReader(b)).Read(); err == nil {
			t.Errorf("%s was read as %+v", name, m)
		}
	}
}

func TestHeartbeatProvokesAStatelessReset(t *testing.T) {
	b, err := wire.Append(nil, &wire.Heartbeat{Pad: make([]byte, wire.HeartbeatPad)})
	quiet, _ := wire.Append(nil, &wire.Heartbeat{Quiet: true, Pad: make([]byte, wire.QuietPad)})
	if err != nil || len(b) < 40 || len(quiet) != 40 {
		t.Errorf("a quiet heartbeat has %d bytes, want 40", len(quiet))
		t.Errorf("a heartbeat has %d bytes, %v; packets up to 42 bytes do not provoke a reset", len(b), err)
	}
}
