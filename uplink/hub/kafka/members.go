package kafka

import (
	"bytes"
	"crypto/rand"
	"net"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// remove takes a member out; the others join anew.
func (g *group) remove(m *member, e *kerr.Error) {
	if m.join != nil {
		m.join <- joinError(e, m.id)
		m.join = nil
	}
	if m.sync != nil {
		m.sync <- syncError(e)
		m.sync = nil
	}
	g.drop(m)
	switch {
	case len(g.members) == 0 && g.state != groupJoining:
		g.state = groupEmpty
		g.generation++
	case len(g.members) == 0:
		g.complete()
	case g.state == groupJoining:
		g.maybeComplete()
	default:
		g.rebalance()
	}
	g.collect()
}

// drop forgets a member.
func (g *group) drop(m *member) {
	m.expiry.Stop()
	delete(g.members, m.id)
	if m.instance != "" && g.static[m.instance] == m.id {
		delete(g.static, m.instance)
	}
}

// touch begins the member's session anew.
func (m *member) touch(g *group) {
	if m.expiry != nil {
		m.expiry.Stop()
	}
	var t *time.Timer
	t = time.AfterFunc(m.session, func() {
		g.gs.mu.Lock()
		defer g.gs.mu.Unlock()
		if g.members[m.id] != m || m.expiry != t {
			return
		}
		if m.join != nil || m.sync != nil {
			m.touch(g) // it waits for us
			return
		}
		g.gs.s.log.Info("kafka group member expired", "group", g.id, "member", m.id, "session", m.session)
		g.remove(m, kerr.UnknownMemberID)
	})
	m.expiry = t
}

func (g *group) forgetPending(id string) {
	g.gs.mu.Lock()
	defer g.gs.mu.Unlock()
	if g.pending[id] != nil {
		delete(g.pending, id)
		g.maybeComplete()
		g.collect()
	}
}

// collect forgets a group that nobody is in.
func (g *group) collect() {
	if len(g.members) == 0 && len(g.pending) == 0 && g.gs.all[g.id] == g {
		g.stopDeadline()
		delete(g.gs.all, g.id)
	}
}

func (g *group) stopDeadline() {
	if g.deadline != nil {
		g.deadline.Stop()
		g.deadline = nil
	}
}

// metadata is what the member told of itself for a protocol; never nil, since it is not
// nullable.
func (m *member) metadata(protocol string) []byte {
	for _, p := range m.protocols {
		if p.Name == protocol {
			return p.Metadata
		}
	}
	return []byte{}
}

// memberID makes an id that nobody guesses.
func memberID(clientID string) string {
	if len(clientID) > 100 {
		clientID = clientID[:100]
	}
	return clientID + "-" + rand.Text()
}

// hostOf is how Kafka's tools show a client: "/10.0.0.7".
func hostOf(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		host = a.String()
	}
	return "/" + host
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func sameProtocols(a, b []kmsg.JoinGroupRequestProtocol) bool {
	return slices.EqualFunc(a, b, func(a, b kmsg.JoinGroupRequestProtocol) bool {
		return a.Name == b.Name && bytes.Equal(a.Metadata, b.Metadata)
	})
}

// cloneProtocols copies what points into the request's frame.
func cloneProtocols(ps []kmsg.JoinGroupRequestProtocol) []kmsg.JoinGroupRequestProtocol {
	out := make([]kmsg.JoinGroupRequestProtocol, len(ps))
	for i, p := range ps {
		out[i] = kmsg.NewJoinGroupRequestProtocol()
		out[i].Name, out[i].Metadata = p.Name, append([]byte{}, p.Metadata...)
	}
	return out
}
