package storage_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"tailrace/storage"
)

// TestARowThatFailedIsTriedAgain: the disk takes no row of the ledger when a reader has found
// damage. Until it does the damage is told all the same, and readers step over it; then the
// row is made durable and the segment repaired, without a restart and without another reader.
func TestARowThatFailedIsTriedAgain(t *testing.T) {
	dir := filepath.Join(quickDir(t), "s")
	fs := &testFS{}
	s, tp := rotten(t, fs, dir)
	defer func() { s.Close() }()
	names := segments(t, dir)
	b := mustRead(t, names[1])
	damageFile(t, names[1], bytes.LastIndex(b, []byte("0000000")), []byte("x"))
	tail := names[len(names)-1]
	failed := make(chan struct{})
	fs.setHook(func(op, n string) error {
		if op == "sync" && n == tail {
			fs.setHook(nil)
			close(failed)
			return errors.New("no")
		}
		return nil
	})
	for i := range 2 {
		readAll(t, tp.Partition(i), tp.Partition(i).Start())
	}
	<-failed
	for err := errors.New("first"); err != nil; { // those who wait behind a failed write are told
		a := s.NewAppend("")
		a.Set(storage.KindMeta, "k", nil)
		err = s.Commit(t.Context(), a)
	}
	rows := s.Losses()
	if len(rows) != 1 {
		t.Fatalf("rows %+v", rows)
	}
	durable := func() int {
		t.Helper()
		in, err := storage.Inspect(copyDir(t, dir), nil)
		if err != nil {
			t.Fatal(err)
		}
		return in.Classes[0].State["loss"]
	}
	if n := durable(); n != 0 {
		t.Fatalf("%d rows are durable although the disk took none", n)
	}
	if err := s.Retain(); err != nil {
		t.Fatal(err)
	}
	if n, st := durable(), s.Stats().Classes[0]; n != 1 || st.Healed != 1 || fmt.Sprint(s.Losses()) == "[]" {
		t.Fatalf("%d rows are durable, %d segments healed, losses %+v", n, st.Healed, s.Losses())
	}
	l := s.Losses()[0]
	if l.From != rows[0].From || l.To != rows[0].To || l.Partition != rows[0].Partition {
		t.Fatalf("the row is %+v, it was %+v", l, rows[0])
	}
}
