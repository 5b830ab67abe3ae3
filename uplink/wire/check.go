package wire

import "fmt"

// check holds the limits that a type alone does not express. It runs on both
// ends: what we would refuse we do not send.
func check(m Message) error {
	switch m := m.(type) {
	case *Hello:
		if m.MinVersion > m.Version || m.Version == 0 {
			return bad("versions %d to %d", m.MinVersion, m.Version)
		}
		if m.Role > RoleBulk {
			return bad("role %d", m.Role)
		}
		if m.Session.IsZero() {
			return bad("session id is zero")
		}
		if len(m.Codecs) > 16 || len(m.Features) > 64 {
			return bad("%d codecs and %d features", len(m.Codecs), len(m.Features))
		}
		if err := name("node", m.Node, 1); err != nil {
			return err
		}
		if err := name("software", m.Software, 0); err != nil {
			return err
		}
		return m.Inventory.check()
	case *Inventory:
		return m.check()
	case *Welcome:
		if len(m.Features) > 64 {
			return bad("%d features", len(m.Features))
		}
	case *Want:
		if m.Lane >= Lanes || m.CatchUp >= Lanes {
			return bad("lane %d, catch-up %d", m.Lane, m.CatchUp)
		}
		if m.From < 0 || m.Last != nil && m.Last.Offset < 0 {
			return bad("negative offset")
		}
		if m.ID == 0 {
			return bad("want id is zero")
		}
		return rangeCount(m.Ranges)
	case *Ack:
		if len(m.Acks) > MaxPartitions {
			return bad("%d partitions", len(m.Acks))
		}
		for i := range m.Acks {
			if err := rangeCount(m.Acks[i].Ranges); err != nil {
				return err
			}
		}
	case *GapReport:
		if len(m.Gaps) > MaxRanges {
			return bad("%d gaps", len(m.Gaps))
		}
		for i := range m.Gaps {
			if err := rangeCount(m.Gaps[i].Ranges); err != nil {
				return err
			}
		}
	case *Refusals:
		if len(m.Refused) > MaxPartitions {
			return bad("%d partitions", len(m.Refused))
		}
		for i := range m.Refused {
			if len(m.Refused[i].Reason) > 512 {
				return bad("a reason of %d bytes", len(m.Refused[i].Reason))
			}
		}
	case *Fork:
		if m.Offset < 0 || m.Next < 0 {
			return bad("negative offset")
		}
	case *Status:
		if len(m.Backlog) > MaxPartitions || len(m.Notes) > 64 || len(m.Links) > 64 {
			return bad("%d backlogs, %d notes and %d links", len(m.Backlog), len(m.Notes), len(m.Links))
		}
	case *Command:
		return name("command", m.Name, 1)
	case *Heartbeat:
		if len(m.Pad) > 1200 {
			return bad("padding of %d bytes", len(m.Pad))
		}
	case *Drain:
		if len(m.Hubs) > 64 {
			return bad("%d hubs", len(m.Hubs))
		}
	}
	return nil
}

func (v *Inventory) check() error {
	if len(v.Epochs) > MaxEpochs || len(v.Partitions) > MaxPartitions {
		return bad("%d epochs and %d partitions", len(v.Epochs), len(v.Partitions))
	}
	if len(v.Partitions) > 0 && len(v.Epochs) == 0 {
		return bad("partitions without an epoch")
	}
	for i := range v.Epochs {
		e := &v.Epochs[i]
		if e.ID.IsZero() {
			return bad("epoch id is zero")
		}
		for j := range e.Forks {
			f := &e.Forks[j]
			if f.Offset < 0 || f.Partition < 0 {
				return bad("fork point %s/%d at %d", f.Topic, f.Partition, f.Offset)
			}
			if err := name("topic", f.Topic, 1); err != nil {
				return err
			}
		}
	}
	ids := make(map[uint32]bool, len(v.Partitions))
	for i := range v.Partitions {
		p := &v.Partitions[i]
		if p.Partition < 0 || p.Start < 0 || p.Next < p.Start {
			return bad("partition %s/%d with offsets %d to %d", p.Topic, p.Partition, p.Start, p.Next)
		}
		if ids[p.ID] {
			return bad("partition id %d twice", p.ID)
		}
		ids[p.ID] = true
		if err := name("topic", p.Topic, 1); err != nil {
			return err
		}
		if err := name("class", p.Class, 0); err != nil {
			return err
		}
	}
	return nil
}

func rangeCount(s RangeSet) error {
	if len(s) > MaxRanges {
		return bad("%d ranges, the limit is %d", len(s), MaxRanges)
	}
	return nil
}

func name(what, s string, least int) error {
	if len(s) < least || len(s) > MaxNameBytes {
		return bad("%s of %d bytes, allowed are %d to %d", what, len(s), least, MaxNameBytes)
	}
	return nil
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}
