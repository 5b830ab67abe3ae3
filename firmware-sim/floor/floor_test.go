package floor_test

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tailrace/firmware-sim/floor"
	"tailrace/firmware-sim/ledger"
	"tailrace/firmware-sim/rawload"
)

func TestFloorKeepsWhatItAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "floor.log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &floor.Server{File: f}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()

	book := ledger.New()
	run, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	r, err := rawload.Run(run, rawload.Config{Dial: rawload.DialTCP(ln.Addr().String(), nil), QoS: 1,
		Clients: 8, Window: 16, Count: 500, Ledger: book})
	if err != nil || r.Acked != 4000 || r.Failed != 0 || r.Refused != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	if r.P50us <= 0 || r.P99us < r.P50us || r.PayloadBytes != 120 {
		t.Fatalf("%+v", r)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	stored, _ := os.ReadFile(path)
	o := book.Observe("floor file")
	for off := int64(0); len(stored) > 0; off++ {
		n := binary.BigEndian.Uint32(stored)
		body := stored[4 : 4+n]
		topic := 2 + int(binary.BigEndian.Uint16(body))
		o.SeePayload(string(body[2:topic]), body[topic+2:], ledger.Position{Offset: off})
		stored = stored[4+n:]
	}
	if rep := o.Report(); !rep.OK() || rep.Delivered != 4000 {
		t.Fatal(rep)
	}
}
