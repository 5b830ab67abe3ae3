package storage

import (
	"fmt"
	"testing"
)

// Of what could not be declared one is tried while the disk still takes no row, and the others
// wait in their order: each failure costs a reopening of the log, and all appends that wait.
func TestDeclareAgainEndsAtTheFirstFailure(t *testing.T) {
	c := &committer{l: new(classLog)}
	works, calls := false, ""
	var try func(i int) func()
	try = func(i int) func() {
		return func() {
			if calls += fmt.Sprint(i); !works {
				c.l.undeclared = append(c.l.undeclared, try(i))
			}
		}
	}
	c.l.undeclared = []func(){try(1), try(2), try(3)}
	for range 2 {
		c.declareAgain()
	}
	works = true
	c.declareAgain()
	if calls != "11123" || len(c.l.undeclared) != 0 {
		t.Fatalf("tried %s, %d are left", calls, len(c.l.undeclared))
	}
}

// What no row has of a range: rows of other partitions do not count, and those that overlap, in
// any order, count once.
func TestSubtractRows(t *testing.T) {
	row := func(id PartitionID, from, to int64) Loss { return Loss{Partition: id, From: from, To: to} }
	rows := []Loss{row(1, 40, 50), row(1, 10, 20), row(2, 0, 100), row(1, 15, 25), row(1, 90, 120), row(1, 45, 48)}
	for r, want := range map[lostRange]string{
		{1, 0, 100}:   "[{1 0 10} {1 25 40} {1 50 90}]",
		{1, 10, 25}:   "[]",
		{1, 12, 30}:   "[{1 25 30}]",
		{1, 60, 60}:   "[]",
		{1, 95, 130}:  "[{1 120 130}]",
		{3, 5, 6}:     "[{3 5 6}]",
		{2, -5, 1000}: "[{2 -5 0} {2 100 1000}]",
	} {
		if got := fmt.Sprint(subtractRows(r, rows)); got != want {
			t.Errorf("%v: %s, want %s", r, got, want)
		}
	}
}
