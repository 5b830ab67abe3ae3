package link

import (
	"context"
	"slices"
	"time"

	"tailrace/uplink/wire"
)

// DrainOrder sends nodes away.
type DrainOrder struct {
	Reason     string
	Nodes      []string      // connected nodes; none = all of them
	Hubs       []string      // host:port to go to, serving the same store; none = come back here
	RetryAfter time.Duration // not before; each node adds up to half of it at random. At most a day
	Over       time.Duration // the order is spread over so long, so that not all of them arrive elsewhere at once
}

// Drain gives the order to the nodes connected now, in turn, and returns how many were
// told. It ends early with ctx. A node that has been told ends its session by itself
// when it reads the order.
func (s *Server) Drain(ctx context.Context, o DrainOrder) (told int, err error) {
	list := s.sessions()
	if len(o.Nodes) > 0 {
		list = slices.DeleteFunc(list, func(hs *hubSession) bool { return !slices.Contains(o.Nodes, hs.node) })
	}
	gap := o.Over / time.Duration(max(len(list), 1))
	t := time.NewTimer(0)
	defer t.Stop()
	for _, hs := range list {
		select {
		case <-ctx.Done():
			return told, ctx.Err()
		case <-t.C:
			t.Reset(gap)
		}
		if hs.ctx.Err() == nil {
			hs.send(&wire.Drain{Reason: o.Reason, Hubs: o.Hubs, RetryAfterMS: uint32(min(max(o.RetryAfter, 0), 24*time.Hour).Milliseconds())})
			told++
		}
	}
	return told, nil
}
