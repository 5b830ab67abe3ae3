package link

import (
	"context"
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
	Since         time.Time // of the present state
	Session       wire.ID
	StoreID       wire.ID
	LastError     string
	Reconnects    int64
	RTT           time.Duration
	ClockOffset   time.Duration // hub's clock minus ours
	BytesSent     int64
	InFlightBytes int64
	SendErrors    int64 // socket errors treated as lost packets
	AckedRecords  int64
}

// NodeState is one connected node, as the hub sees it.
type NodeState struct {
	Node          string
	Info          SessionInfo
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

// Client keeps a node connected to its hub. Run once.
type Client struct{ cfg ClientConfig }

// NewClient checks the configuration; it starts nothing.
func NewClient(cfg ClientConfig) (*Client, error) { return &Client{cfg: cfg}, nil }

// Run connects, replicates and reconnects until ctx ends; it returns ctx's error.
func (c *Client) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// State is a snapshot.
func (c *Client) State() ClientState { return ClientState{} }

// LinkUp tells the client that the network changed for the better (an interface came up, an address changed): it
// redials at once beside a connection that makes no progress, and cuts a back-off short.
func (c *Client) LinkUp() {}

// Server is the hub's end. Run once.
type Server struct{ cfg ServerConfig }

// NewServer checks the configuration; it starts nothing.
func NewServer(cfg ServerConfig) (*Server, error) { return &Server{cfg: cfg}, nil }

// Run accepts nodes until ctx ends, then closes every connection and returns ctx's error.
func (s *Server) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// Nodes lists the connected nodes by name.
func (s *Server) Nodes() []NodeState { return nil }

// Drain asks every node to leave and come back after a time spread over retryAfter.
func (s *Server) Drain(reason string, hubs []string, retryAfter time.Duration) {}

// Disconnect closes a node's session.
func (s *Server) Disconnect(node string, code wire.Code, message string) error {
	return ErrNotConnected
}

// Want asks a connected node for a range of one partition and epoch (on-demand replay). The
// batches arrive at Sink.Append with the lane given.
func (s *Server) Want(node, topic string, partition int, epoch wire.ID, ranges wire.RangeSet, lane wire.Lane, rate uint64) error {
	return ErrNotConnected
}

// Command runs a command on a node and waits for its result.
func (s *Server) Command(ctx context.Context, node, name string, args []byte) (wire.CommandResult, error) {
	return wire.CommandResult{}, ErrNotConnected
}

// Configure sends a configuration to a node.
func (s *Server) Configure(node string, c wire.Config) error { return ErrNotConnected }
