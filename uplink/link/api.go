package link

import (
	"errors"
	"time"

	"tailrace/uplink/wire"
)

// ErrNotConnected is returned for a node that has no session now.
var ErrNotConnected = errors.New("the node is not connected")

// ClientState is what an operator wants to know of the link.
type ClientState struct {
	Connected     bool
	Hub           string    // address in use, or last tried
	Remote        string    // the hub's address on the network while connected; a session's last one stays
	Transport     Transport // in use, or used last
	Since         time.Time // of the present state
	Session       wire.ID
	StoreID       wire.ID
	LastError     string
	Reconnects    int64
	RTT           time.Duration
	ClockOffset   time.Duration  // hub's clock minus ours
	BytesSent     int64          // of this session, as QUIC packets
	InFlightBytes int64          // raw bytes sent and not durable at the hub
	SendErrors    int64          // socket errors treated as lost packets
	AckedRecords  int64          // offsets, gaps included
	Refused       []RefusedTopic // what the hub does not take from this node, as it said last
}

// NodeState is one connected node, as the hub sees it.
type NodeState struct {
	Node          string
	Info          SessionInfo
	Transport     Transport
	RTT           time.Duration
	ClockOffset   time.Duration // node's clock minus ours
	BytesReceived int64         // raw bytes of batches
	WireBytes     int64         // as they came, compressed
	Records       int64
	Outstanding   int64 // raw bytes received and not yet durable
	LastHeard     time.Time
	Status        wire.Status // last report
	Forked        []wire.Fork
	Connections   int
}
