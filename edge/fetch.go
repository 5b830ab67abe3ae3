package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"tailrace/storage"
	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// Command answers the hub: it implements link.Commander.
func (s *source) Command(c wire.Command) wire.CommandResult {
	if c.Name != wire.CommandLocate {
		return wire.CommandResult{Error: fmt.Sprintf("this node does not know the command %q", c.Name)}
	}
	l, err := wire.DecodeLocate(c.Args)
	if err != nil {
		return wire.CommandResult{Error: err.Error()}
	}
	out, err := s.locate(l)
	if err != nil {
		return wire.CommandResult{Error: err.Error()}
	}
	body, err := wire.EncodeLocated(out)
	if err != nil {
		return wire.CommandResult{Error: err.Error()}
	}
	return wire.CommandResult{Body: body}
}

// locate finds the batches that may hold records of a span of time, in every epoch.
func (s *source) locate(l wire.Locate) (out wire.Located, err error) {
	t, ok := s.store.Topic(l.Topic)
	if !ok {
		return out, fmt.Errorf("this node has no stream %q", l.Topic)
	}
	if mode, _ := s.streams.replication(l.Topic); mode != wire.ModeOnDemand {
		return out, fmt.Errorf("stream %q is %s here: its records come by themselves", l.Topic, mode)
	}
	epochs := s.store.Epochs()
	for _, p := range t.Partitions() {
		set, err := within(p, time.UnixMilli(l.From), time.UnixMilli(l.To))
		if err != nil {
			return out, fmt.Errorf("look for the records of stream %q: %w", l.Topic, err)
		}
		oldest, ok := p.StartTime()
		if ok && (out.Oldest == 0 || oldest < out.Oldest) {
			out.Oldest = oldest
		}
		if !ok || l.From < oldest { // what is gone may have been of that time
			set.Add(0, p.Start())
		}
		for k := range epochs {
			from, to := span(epochs, k, p)
			if r := set.Within(from, to); len(r) > 0 {
				out.Ranges = append(out.Ranges, wire.PartitionRanges{Partition: uint32(p.ID()), Epoch: epochs[k].ID, Ranges: r})
			}
		}
	}
	return out, nil
}

// within is the offsets of the batches that may hold records with times in [from, to).
func within(p *storage.Partition, from, to time.Time) (set uplink.RangeSet, err error) {
	c := p.ReadRange(from, to)
	for {
		b, err := c.Next(context.Background())
		switch {
		case errors.Is(err, io.EOF):
			return set, nil
		case errors.Is(err, storage.ErrOffsetOutOfRange):
			c.SeekTo(p.Start())
			continue
		case err != nil:
			return set, err
		}
		if n := len(set); n >= wire.MaxLocated && b.BaseOffset() > set[n-1].To {
			set[n-1].To = b.BaseOffset() // too many pieces: what lies between comes along
		}
		set.Add(b.BaseOffset(), b.NextOffset())
	}
}
