package kafka

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// groups coordinates consumer groups by the classic protocol: members join,
// the leader among them assigns partitions, all get their share by sync, and
// heartbeats keep them. Membership lives in memory: after a restart members are
// unknown and join again, which clients do by themselves. Offsets are durable
// (offsets.go).
//
//	empty ──join──▶ joining ──all joined, or deadline──▶ syncing ──leader's sync──▶ stable
//	                   ▲──────────── join, leave, expiry, new metadata ───────────────┘
type groups struct {
	s   *Server
	mu  sync.Mutex        // guards everything below; never held while waiting
	all map[string]*group // groups with members or pending member ids
}

type groupState uint8

const (
	groupEmpty groupState = iota
	groupJoining
	groupSyncing
	groupStable
)

// group is guarded by groups.mu, as are its members.
type group struct {
	gs           *groups
	id           string
	state        groupState
	generation   int32
	protocolType string
	protocol     string
	leader       string // member id
	members      map[string]*member
	static       map[string]string      // instance id to member id
	pending      map[string]*time.Timer // member ids given out that have not joined yet (KIP-394)
	deadline     *time.Timer            // of joining
	round        int                    // number of joinings; a late timer of an earlier one does nothing
	gathering    bool                   // the first delay of a new group runs
}

type member struct {
	id, instance string
	clientID     string
	clientHost   string
	session      time.Duration
	rebalance    time.Duration
	protocols    []kmsg.JoinGroupRequestProtocol
	assignment   []byte
	join         chan *kmsg.JoinGroupResponse // capacity 1; not nil while a join waits
	sync         chan *kmsg.SyncGroupResponse // capacity 1; not nil while a sync waits
	expiry       *time.Timer                  // of the session
}

const (
	minSession = time.Second
	maxSession = 30 * time.Minute
	maxGroupID = 255
)

func newGroups(s *Server) *groups { return &groups{s: s, all: make(map[string]*group)} }

// join registers a member and returns the channel its answer comes by, or the
// answer itself.
func (gs *groups) join(c *conn, req *kmsg.JoinGroupRequest) (<-chan *kmsg.JoinGroupResponse, *kmsg.JoinGroupResponse) {
	refuse := func(e *kerr.Error) (<-chan *kmsg.JoinGroupResponse, *kmsg.JoinGroupResponse) {
		return nil, joinError(e, req.MemberID)
	}
	session := time.Duration(req.SessionTimeoutMillis) * time.Millisecond
	switch {
	case req.Group == "" || len(req.Group) > maxGroupID || strings.ContainsRune(req.Group, 0):
		return refuse(kerr.InvalidGroupID)
	case session < minSession || session > maxSession:
		return refuse(kerr.InvalidSessionTimeout)
	case req.ProtocolType == "" || len(req.Protocols) == 0:
		return refuse(kerr.InconsistentGroupProtocol)
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.all[req.Group]
	if g == nil {
		if req.MemberID != "" {
			return refuse(kerr.UnknownMemberID)
		}
		if len(gs.all) >= gs.s.cfg.MaxGroups {
			return refuse(kerr.CoordinatorNotAvailable)
		}
		g = &group{gs: gs, id: req.Group, members: make(map[string]*member), static: make(map[string]string), pending: make(map[string]*time.Timer)}
		gs.all[req.Group] = g
	}
	defer g.collect()
	if !g.suits(req) {
		return refuse(kerr.InconsistentGroupProtocol)
	}
	instance := deref(req.InstanceID)
	m := g.members[req.MemberID]
	switch {
	case instance != "" && req.MemberID == "" && g.static[instance] != "":
		g.remove(g.members[g.static[instance]], kerr.FencedInstanceID)
		gs.all[g.id] = g // it may have been the last one
	case instance != "" && req.MemberID != "" && g.static[instance] != req.MemberID:
		if g.static[instance] != "" {
			return refuse(kerr.FencedInstanceID)
		}
		return refuse(kerr.UnknownMemberID)
	case m != nil && m.instance != instance:
		return refuse(kerr.UnknownMemberID)
	case m == nil && req.MemberID != "" && g.pending[req.MemberID] == nil:
		return refuse(kerr.UnknownMemberID)
	}
	if m == nil && len(g.members)+len(g.pending) >= gs.s.cfg.MaxGroupMembers && g.pending[req.MemberID] == nil {
		return refuse(kerr.GroupMaxSizeReached)
	}
	if m == nil && req.MemberID == "" && instance == "" && req.Version >= 4 {
		id := memberID(c.peer.ClientID)
		g.pending[id] = time.AfterFunc(session, func() { g.forgetPending(id) })
		return nil, joinError(kerr.MemberIDRequired, id)
	}
	fresh := m == nil
	if fresh {
		m = g.add(c, req)
	}
	changed := !sameProtocols(m.protocols, req.Protocols)
	m.session = session
	m.rebalance = time.Duration(req.RebalanceTimeoutMillis) * time.Millisecond
	if req.Version == 0 {
		m.rebalance = session
	}
	m.rebalance = min(max(m.rebalance, minSession), maxSession)
	m.protocols = cloneProtocols(req.Protocols)
	m.touch(g)

	if !fresh && !changed && (g.state == groupSyncing || g.state == groupStable && m.id != g.leader) {
		// A repetition: its answer was lost.
		return nil, g.joined(m)
	}
	ch := make(chan *kmsg.JoinGroupResponse, 1)
	if m.join != nil { // joined twice: the older waits in vain
		m.join <- joinError(kerr.RebalanceInProgress, m.id)
	}
	m.join = ch
	if g.state != groupJoining {
		g.rebalance()
	}
	g.maybeComplete()
	return ch, nil
}

func joinError(e *kerr.Error, memberID string) *kmsg.JoinGroupResponse {
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.ErrorCode, resp.Generation, resp.MemberID = e.Code, -1, memberID
	resp.Protocol = kmsg.StringPtr("") // not nullable before v7
	return resp
}

// suits tells whether the joiner speaks what the others speak.
func (g *group) suits(req *kmsg.JoinGroupRequest) bool {
	others := 0
	for id, m := range g.members {
		if id == req.MemberID || m.instance != "" && m.instance == deref(req.InstanceID) {
			continue
		}
		others++
	}
	if others == 0 {
		return true
	}
	if g.protocolType != req.ProtocolType {
		return false
	}
	common := g.common(req.MemberID)
	return slices.ContainsFunc(req.Protocols, func(p kmsg.JoinGroupRequestProtocol) bool { return common[p.Name] })
}

// common are the protocols that every member but one speaks.
func (g *group) common(but string) map[string]bool {
	count := make(map[string]int)
	n := 0
	for id, m := range g.members {
		if id == but {
			continue
		}
		n++
		seen := make(map[string]bool)
		for _, p := range m.protocols {
			if !seen[p.Name] {
				seen[p.Name] = true
				count[p.Name]++
			}
		}
	}
	out := make(map[string]bool)
	for name, c := range count {
		if c == n {
			out[name] = true
		}
	}
	return out
}

func (g *group) add(c *conn, req *kmsg.JoinGroupRequest) *member {
	id := req.MemberID
	if t := g.pending[id]; t != nil {
		t.Stop()
		delete(g.pending, id)
	}
	m := &member{id: id, instance: deref(req.InstanceID), clientID: c.peer.ClientID, clientHost: hostOf(c.peer.Remote), protocols: cloneProtocols(req.Protocols)}
	if m.id == "" {
		m.id = memberID(c.peer.ClientID)
	}
	if m.instance != "" {
		g.static[m.instance] = m.id
	}
	if len(g.members) == 0 {
		g.protocolType = req.ProtocolType
	}
	g.members[m.id] = m
	return m
}

// sync hands in the leader's assignment and gets the member's own share.
func (gs *groups) sync(req *kmsg.SyncGroupRequest) (<-chan *kmsg.SyncGroupResponse, *kmsg.SyncGroupResponse) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g, m, e := gs.find(req.Group, req.MemberID, req.InstanceID, req.Generation)
	if e != nil {
		return nil, syncError(e)
	}
	if req.ProtocolType != nil && *req.ProtocolType != g.protocolType || req.Protocol != nil && *req.Protocol != g.protocol {
		return nil, syncError(kerr.InconsistentGroupProtocol)
	}
	m.touch(g)
	switch g.state {
	case groupJoining:
		return nil, syncError(kerr.RebalanceInProgress)
	case groupStable:
		return nil, g.share(m)
	}
	if m.sync != nil {
		m.sync <- syncError(kerr.RebalanceInProgress)
	}
	m.sync = make(chan *kmsg.SyncGroupResponse, 1)
	ch := m.sync
	if m.id == g.leader {
		for _, a := range req.GroupAssignment {
			if o := g.members[a.MemberID]; o != nil {
				o.assignment = bytes.Clone(a.MemberAssignment)
			}
		}
		g.state = groupStable
		for _, o := range g.members {
			if o.sync != nil {
				o.sync <- g.share(o)
				o.sync = nil
				o.touch(g)
			}
		}
	}
	return ch, nil
}

func (g *group) share(m *member) *kmsg.SyncGroupResponse {
	resp := kmsg.NewPtrSyncGroupResponse()
	typ, proto := g.protocolType, g.protocol
	resp.ProtocolType, resp.Protocol = &typ, &proto
	if resp.MemberAssignment = m.assignment; resp.MemberAssignment == nil {
		resp.MemberAssignment = []byte{} // not nullable
	}
	return resp
}

func syncError(e *kerr.Error) *kmsg.SyncGroupResponse {
	resp := kmsg.NewPtrSyncGroupResponse()
	resp.ErrorCode, resp.MemberAssignment = e.Code, []byte{}
	return resp
}

func (gs *groups) heartbeat(req *kmsg.HeartbeatRequest) *kerr.Error {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g, m, e := gs.find(req.Group, req.MemberID, req.InstanceID, req.Generation)
	if e != nil {
		return e
	}
	m.touch(g)
	if g.state == groupJoining {
		return kerr.RebalanceInProgress
	}
	return nil
}

// leave removes one member.
func (gs *groups) leave(groupID, memberID string, instance *string) *kerr.Error {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.all[groupID]
	if g == nil {
		return kerr.UnknownMemberID
	}
	if inst := deref(instance); inst != "" {
		id := g.static[inst]
		if id == "" {
			return kerr.UnknownMemberID
		}
		if memberID != "" && memberID != id {
			return kerr.FencedInstanceID
		}
		memberID = id
	}
	if t := g.pending[memberID]; t != nil {
		t.Stop()
		delete(g.pending, memberID)
		g.maybeComplete()
		g.collect()
		return nil
	}
	m := g.members[memberID]
	if m == nil {
		return kerr.UnknownMemberID
	}
	g.remove(m, kerr.UnknownMemberID)
	return nil
}

// find is a member of the current generation.
func (gs *groups) find(groupID, memberID string, instance *string, generation int32) (*group, *member, *kerr.Error) {
	g := gs.all[groupID]
	if groupID == "" {
		return nil, nil, kerr.InvalidGroupID
	}
	if g == nil {
		return nil, nil, kerr.UnknownMemberID
	}
	if inst := deref(instance); inst != "" && g.static[inst] != "" && g.static[inst] != memberID {
		return nil, nil, kerr.FencedInstanceID
	}
	m := g.members[memberID]
	if m == nil {
		return nil, nil, kerr.UnknownMemberID
	}
	if generation != g.generation {
		return nil, nil, kerr.IllegalGeneration
	}
	return g, m, nil
}

// active tells whether the group has members.
func (gs *groups) active(id string) bool {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.all[id]
	return g != nil && len(g.members) > 0
}
