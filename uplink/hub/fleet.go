package hub

import (
	"time"

	"tailrace/uplink/hub/console"
)

// fleet is the hub as its console sees it.
type fleet struct{ h *Hub }

func (f fleet) Nodes() []console.Node {
	list := f.h.Nodes()
	out := make([]console.Node, 0, len(list))
	for _, n := range list {
		seen, _ := parseStamp(n.LastSeen) // our own format
		c := console.Node{Name: n.Node, State: n.State, Fenced: n.Fenced, Software: n.Software, Remote: n.Remote, Epoch: n.Epoch, Dark: n.Dark,
			LastSeen: time.UnixMilli(seen), RTT: time.Duration(n.RTTSeconds * float64(time.Second)),
			LagRecords: n.LagRecords, LagBytes: n.LagBytes, LagSeconds: n.LagSeconds, Stored: n.Stored, Lost: n.Lost, Forks: n.Forks, DrainSeconds: n.DrainSeconds, ClockOffset: time.Duration(n.ClockOffset * float64(time.Second))}
		if s := n.Status; s != nil {
			for _, k := range s.Links {
				c.Links = append(c.Links, console.Link{Name: k.Name, Interface: k.Interface, Held: k.Held, Ends: k.Ends, RateLimit: k.RateLimit, Monthly: k.Monthly, Used: k.Used, Left: k.Left, Forecast: k.Forecast})
			}
			c.Devices, c.DiskBytes, c.DiskBudget, c.Notes = s.Devices, s.DiskBytes, s.DiskBudget, s.Notes
		}
		for _, r := range n.Refused {
			c.Notes = append(c.Notes, "topic "+r.Topic+" is not taken: "+r.Reason)
		}
		if n.OtherCopy != "" {
			c.Notes = append(c.Notes, "another machine with this name is refused, "+n.OtherCopy)
		}
		for _, t := range n.Topics {
			c.Topics = append(c.Topics, console.NodeTopic{Topic: t.Topic, Partition: t.Partition, CentralTopic: t.CentralTopic, CentralPartition: t.CentralPartition,
				CompleteTo: t.CompleteTo, Next: t.Next, CompleteTime: t.CompleteTime, LagRecords: t.LagRecords, LagSeconds: t.LagSeconds, Stored: t.Stored, Lost: t.Lost,
				Mode: t.Mode, Priority: t.Priority, AtNode: t.AtNode, Backfill: t.BackfillTopic, DrainSeconds: t.DrainSeconds, WirePerRecord: t.WirePerRecord})
		}
		out = append(out, c)
	}
	return out
}

func (f fleet) Losses(limit int) ([]console.Loss, []console.LossTotal) {
	var rows []console.Loss
	for _, r := range f.h.central.Losses("", "", limit) {
		rows = append(rows, console.Loss{Node: r.Node, Topic: r.Topic, Partition: r.Partition, Reason: r.Reason, Detail: r.Detail,
			From: r.From, To: r.To, Records: r.Records, Declared: time.UnixMilli(r.DeclaredAt)})
	}
	var totals []console.LossTotal
	for _, t := range sortedLossKeys(f.h.central.LossTotals()) {
		totals = append(totals, console.LossTotal{Node: t.Node, Topic: t.Topic, Reason: t.Reason, Ranges: t.Ranges, Records: t.Records})
	}
	return rows, totals
}

func (f fleet) Received() int64 { return f.h.central.Stats().Records }

func (f fleet) KafkaAddr() string {
	if a := f.h.cfg.Kafka.Advertised; a != "" {
		return a
	}
	_, _, kafka := f.h.Addrs()
	return kafka
}
