package mqtt

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"tailrace/edge/mqtt/packet"
)

// StateKind names one kind of durable state. The values are not stored by this
// package: the backend maps them to its own kinds.
type StateKind uint8

const (
	KindSession  StateKind = iota + 1 // key: client id
	KindRetained                      // key: topic
	KindWindow                        // key: client id; written by Window, folded with FoldWindow
	KindCursor                        // positions of deliveries: cursor.go; only with Config.Log
)

func (k StateKind) String() string {
	switch k {
	case KindSession:
		return "session"
	case KindRetained:
		return "retained"
	case KindWindow:
		return "window"
	case KindCursor:
		return "cursor"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Backend is what the server needs from the node: who may come in, and a place
// where publishes become durable. A Backend that also has a method of
// SubscribeAuthorizer is asked about every SUBSCRIBE.
type Backend interface {
	// Authenticate decides about a well-formed CONNECT. It is called on the
	// connection's own goroutine, so it may take its time within the login timeout.
	// It may set c.Identity and c.Routes. A *ReasonError carries the CONNACK code;
	// any other error means 0x87, and its text goes only to the log. cert is the
	// verified client certificate, nil without TLS or without a certificate.
	// password is nil when none was sent and valid only during the call.
	Authenticate(c *Client, username string, password []byte, cert *x509.Certificate) error
	// Begin returns a burst: the publishes and state changes of one read of one
	// connection. The server fills it from one goroutine and commits it once, even
	// when every Add was refused. It may be called for several clients at once.
	Begin(c *Client) Burst
}

// Burst collects what becomes durable together, all or nothing.
type Burst interface {
	// Add routes and encodes p now: p and everything it points to is valid only
	// during the call (but p.Name may be kept, and *p.Route is the backend's).
	// An error refuses this publish alone; a *ReasonError gives the code, anything
	// else means 0x83. Nothing of a refused publish may stay in the burst.
	Add(p *Publish) error
	// Window appends delta to the fold of (KindWindow, clientID); see FoldWindow.
	// delta is valid only during the call.
	Window(clientID string, delta []byte)
	// SetState sets state in the same commit, nil deletes. Valid only during the call.
	SetState(kind StateKind, key string, value []byte)
	// Commit hands the burst over; it may block for back-pressure. done runs exactly
	// once, after everything is durable (nil) or nothing is acknowledged (error), and
	// after State.Get shows what was set. It may run on the committer's goroutine: it
	// never blocks. Bursts whose done runs out of order are put in order per
	// connection here. The burst must not be used afterwards.
	Commit(done func(err error))
}

// ErrUnknownOutcome, wrapped by the error given to done, says that some of the burst may
// be or become durable. No refusal can be sent then: the connection ends without an
// answer, and the window settles the re-sends.
var ErrUnknownOutcome = errors.New("outcome of the commit is unknown")

// ErrStored, returned by Burst.Add, says that the backend has this very message
// already: it is answered like one that was stored, and not delivered again.
var ErrStored = errors.New("stored already")

// State reads durable state. It shows at least every change whose done has run.
type State interface {
	Load(kind StateKind, f func(key string, value []byte) bool) // at start; f keeps no slice
	Get(kind StateKind, key string) ([]byte, bool)              // slice read-only, any time, from any goroutine
}

// SubscribeAuthorizer may be implemented by a Backend. A *ReasonError gives the
// SUBACK code, another error 0x87. filter has its $share prefix removed.
type SubscribeAuthorizer interface {
	AuthorizeSubscribe(c *Client, filter string, qos byte) error
}

// PublishProps are the MQTT 5 properties that matter beyond the connection.
type PublishProps = packet.MessageProps

// Publish is one message of a client, or a will.
type Publish struct {
	Topic    []byte // alias already resolved
	Name     string // the topic as a string that may be kept; one per connection and topic
	Route    *any   // the backend's slot per connection and topic, kept while the topic is in the cache
	Payload  []byte
	QoS      byte
	Retain   bool
	Dup      bool
	PacketID uint16        // 0 at QoS 0
	Props    *PublishProps // nil when there are none
	Hash     uint64        // content hash as in the window, 0 at QoS 0 and where no session is kept
	Arrival  time.Time
	Will     bool
}

// Client is one connected client. The exported fields do not change after
// Authenticate returned, but for Routes, which belongs to the backend and is used
// only from the connection's goroutine.
type Client struct {
	ID       string
	Version  byte // 3, 4 or 5
	Username string
	Identity string // set by Authenticate; owner of the session with this client id
	Remote   string
	Listener string
	Assigned bool // the server chose ID
	Routes   any
}

// ReasonError is a refusal with an MQTT 5 reason code of 0x80 or more.
type ReasonError struct {
	Code   packet.Code
	Reason string
}

func (e *ReasonError) Error() string {
	return fmt.Sprintf("refused with MQTT reason 0x%02X: %s", byte(e.Code), e.Reason)
}
