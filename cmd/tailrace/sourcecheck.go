package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/firmware-sim/data"
)

// sourceCheck compares records with the rows of the recording they must be. It knows
// the source file and nothing of the system between: a record's row follows from its
// device and sequence number, and every value must be the row's text.
type sourceCheck struct {
	table   *data.Table
	rows    int // a device
	total   int
	devices map[string]*deviceSeen

	delivered, duplicate, outOfOrder, altered int64
}

type deviceSeen struct {
	seen []bool // by row
	max  int    // highest row seen, -1 none
}

func newSourceCheck(t *data.Table, rows int) *sourceCheck {
	c := &sourceCheck{table: t, rows: rows, devices: map[string]*deviceSeen{}}
	for _, d := range t.Devices {
		n := min(rows, t.DeviceRows(d))
		c.total += n
		c.devices[d] = &deviceSeen{seen: make([]bool, n), max: -1}
	}
	return c
}

// see takes one record in the order of its partition.
func (c *sourceCheck) see(key, value []byte) {
	c.delivered++
	var p struct {
		Turbine string                     `json:"turbine"`
		Seq     int                        `json:"seq"`
		TS      int64                      `json:"ts"`
		Signals map[string]json.RawMessage `json:"signals"`
	}
	if json.Unmarshal(value, &p) != nil || p.Turbine != string(key) {
		c.altered++
		return
	}
	d := c.devices[p.Turbine]
	i := p.Seq - 1
	if d == nil || i < 0 || i >= len(d.seen) {
		c.altered++
		return
	}
	if !c.same(p.Turbine, i, p.TS, p.Signals) {
		c.altered++
	}
	if d.seen[i] {
		c.duplicate++
		return
	}
	d.seen[i] = true
	if i < d.max {
		c.outOfOrder++
	}
	d.max = max(d.max, i)
}

func (c *sourceCheck) same(device string, i int, ts int64, signals map[string]json.RawMessage) bool {
	row := c.table.DeviceRow(device, i)
	at, err := row.Time()
	if err != nil || at.UnixMilli() != ts || len(signals) != len(c.table.Signals) {
		return false
	}
	ok := true
	row.Signals(func(name string, want []byte) {
		got := string(signals[name])
		switch {
		case len(want) == 0:
			ok = ok && got == "null"
		case got != string(want):
			ok = ok && got == `"`+string(want)+`"`
		}
	})
	return ok
}

func (c *sourceCheck) lost() (n int64) {
	for _, d := range c.devices {
		for _, s := range d.seen {
			if !s {
				n++
			}
		}
	}
	return n
}

func newConsumer(addr, topic string, opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(addr), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(100 * time.Millisecond), kgo.FetchMaxWait(250 * time.Millisecond), kgo.ClientID("tailrace-demo"),
	}, opts...)...)
}

// consumeUntil reads the topic live, from its beginning, until as many records came
// as the source has rows. It fails when nothing comes for a while.
func consumeUntil(ctx context.Context, addr, topic string, check *sourceCheck, prog *progress) error {
	cl, err := newConsumer(addr, topic)
	if err != nil {
		return err
	}
	defer cl.Close()
	for check.delivered < int64(check.total) {
		pctx, cancel := context.WithTimeout(ctx, onceStall)
		fs := cl.PollFetches(pctx)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fs.NumRecords() == 0 {
			if err := fs.Err(); errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("nothing arrived for %s: %d of %d records", onceStall, check.delivered, check.total)
			}
		}
		fs.EachRecord(func(r *kgo.Record) { check.see(r.Key, r.Value) })
		prog.add(int64(fs.NumRecords()))
	}
	return nil
}

// consumeToEnd reads what the partitions hold in all and counts what was not read
// before as duplicates.
func consumeToEnd(ctx context.Context, addr, topic string, check *sourceCheck) error {
	cl, err := newConsumer(addr, topic)
	if err != nil {
		return err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list end offsets: %w", err)
	}
	var held int64
	ends.Each(func(o kadm.ListedOffset) { held += o.Offset })
	if held < check.delivered {
		return fmt.Errorf("the topic holds %d records, fewer than were read: %d", held, check.delivered)
	}
	// A second reading from the beginning is the replay: the same, and to the end.
	again := newSourceCheck(check.table, check.rows)
	for again.delivered < held {
		pctx, cancel := context.WithTimeout(ctx, onceStall)
		fs := cl.PollFetches(pctx)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if fs.NumRecords() == 0 && errors.Is(fs.Err(), context.DeadlineExceeded) {
			return fmt.Errorf("replay: nothing arrived for %s: %d of %d records", onceStall, again.delivered, held)
		}
		fs.EachRecord(func(r *kgo.Record) { again.see(r.Key, r.Value) })
	}
	again.duplicate = max(again.duplicate, check.duplicate)
	again.outOfOrder = max(again.outOfOrder, check.outOfOrder)
	again.altered = max(again.altered, check.altered)
	*check = *again
	return nil
}
