package kafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// rebalance begins a joining: everyone has to join again until the deadline.
func (g *group) rebalance() {
	for _, m := range g.members {
		if m.sync != nil {
			m.sync <- syncError(kerr.RebalanceInProgress)
			m.sync = nil
			m.touch(g)
		}
		m.assignment = nil
	}
	wait := time.Duration(0)
	g.gathering = false
	if g.state == groupEmpty {
		if wait = g.gs.s.cfg.RebalanceDelay; wait > 0 {
			g.gathering = true
		}
	} else {
		for _, m := range g.members {
			wait = max(wait, m.rebalance)
		}
	}
	g.state = groupJoining
	g.round++
	round := g.round
	g.stopDeadline()
	if wait <= 0 {
		return
	}
	g.deadline = time.AfterFunc(wait, func() {
		g.gs.mu.Lock()
		defer g.gs.mu.Unlock()
		if g.state == groupJoining && g.round == round {
			g.complete()
		}
	})
}

// maybeComplete ends a joining when everyone has joined.
func (g *group) maybeComplete() {
	if g.state != groupJoining || g.gathering || len(g.pending) > 0 {
		return
	}
	for _, m := range g.members {
		if m.join == nil {
			return
		}
	}
	g.complete()
}

// complete ends a joining: who has not joined is out, the rest is a generation.
func (g *group) complete() {
	g.stopDeadline()
	g.gathering = false
	for _, m := range g.members {
		if m.join == nil {
			g.drop(m)
		}
	}
	g.generation++
	if len(g.members) == 0 {
		g.state = groupEmpty
		g.collect()
		return
	}
	if g.members[g.leader] == nil {
		for id := range g.members {
			g.leader = id
			break
		}
	}
	g.protocol = g.elect()
	g.state = groupSyncing
	for _, m := range g.members {
		m.join <- g.joined(m)
		m.join = nil
		m.touch(g)
	}
}

// elect chooses the protocol that most members like best among those that all
// speak.
func (g *group) elect() string {
	common := g.common("")
	votes := make(map[string]int)
	for _, m := range g.members {
		for _, p := range m.protocols {
			if common[p.Name] {
				votes[p.Name]++
				break
			}
		}
	}
	best := ""
	for name, n := range votes {
		if best == "" || n > votes[best] || n == votes[best] && name < best {
			best = name
		}
	}
	return best
}

func (g *group) joined(m *member) *kmsg.JoinGroupResponse {
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.Generation = g.generation
	typ, proto := g.protocolType, g.protocol
	resp.ProtocolType, resp.Protocol = &typ, &proto
	resp.LeaderID, resp.MemberID = g.leader, m.id
	if m.id != g.leader {
		return resp
	}
	for _, o := range g.members {
		rm := kmsg.NewJoinGroupResponseMember()
		rm.MemberID = o.id
		if o.instance != "" {
			rm.InstanceID = kmsg.StringPtr(o.instance)
		}
		rm.ProtocolMetadata = o.metadata(g.protocol)
		resp.Members = append(resp.Members, rm)
	}
	return resp
}
