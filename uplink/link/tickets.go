package link

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// A Keeper keeps a few kilobytes over restarts. They are secret: whoever has them can pass for
// the node, or read what is said to the hub's nodes. Save replaces all of it at once.
type Keeper interface {
	Load() ([]byte, error) // nothing and no error where nothing was kept
	Save([]byte) error
}

// A kept file is magic, CRC-32C of what follows, and fields of a length (u32) and as many bytes.
const keptHeader = 8 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sealKept(magic string, fields [][]byte) []byte {
	b := append([]byte(magic), 0, 0, 0, 0)
	for _, f := range fields {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	binary.BigEndian.PutUint32(b[len(magic):], crc32.Checksum(b[keptHeader:], castagnoli))
	return b
}

// openKept returns the fields of what a Keeper has; none where it has nothing.
func openKept(magic string, k Keeper, most int) ([][]byte, error) {
	b, err := k.Load()
	if err != nil || len(b) == 0 {
		return nil, err
	}
	if len(b) < keptHeader || string(b[:len(magic)]) != magic || crc32.Checksum(b[keptHeader:], castagnoli) != binary.BigEndian.Uint32(b[len(magic):]) {
		return nil, errors.New("damaged")
	}
	var out [][]byte
	for b = b[keptHeader:]; len(b) > 0; {
		if len(b) < 4 || int64(len(b)-4) < int64(binary.BigEndian.Uint32(b)) || len(out) == most {
			return nil, errors.New("damaged")
		}
		n := binary.BigEndian.Uint32(b)
		out, b = append(out, b[4:4+n]), b[4+n:]
	}
	return out, nil
}

// tickets are the TLS sessions that a node can resume, one for each way to a hub: the name of
// the entry says transport, address, name in the hub's certificate, and which certificate of
// the node the ticket vouches for. A ticket may be used again and again.
//
// Tickets are kept as bytes: quic-go writes into the session that it gets, and several
// connections are dialled at once.
type tickets struct {
	keep  Keeper // nil = not over restarts
	log   *slog.Logger
	wake  chan struct{} // capacity 1: something is to be saved
	mu    sync.Mutex    // guards the following
	list  []ticket      // the one that came last is the last
	dirty bool
}

type ticket struct {
	name          string
	label, secret []byte // what the hub gave, and what the node knows of it
}

const (
	ticketMagic = "TRTICKT1"
	maxTickets  = 16       // hubs, over QUIC and TCP
	maxTicket   = 16 << 10 // bytes of one
	// A hub gives a ticket with each connection, and takes each for a week: flash is written less often.
	ticketSave = 10 * time.Minute
)

func newTickets(keep Keeper, log *slog.Logger) *tickets {
	t := &tickets{keep: keep, log: log, wake: make(chan struct{}, 1)}
	if keep == nil {
		return t
	}
	fields, err := openKept(ticketMagic, keep, 3*maxTickets)
	if err == nil && len(fields)%3 != 0 {
		err = errors.New("damaged")
	}
	if err != nil {
		log.Warn("the kept TLS tickets cannot be used, the next handshake is a whole one", "err", err)
		return t
	}
	for f := range slices.Chunk(fields, 3) {
		t.list = append(t.list, ticket{string(f[0]), f[1], f[2]})
	}
	return t
}

// at is the cache for one way to a hub.
func (t *tickets) at(transport Transport, hub string, conf *tls.Config) tls.ClientSessionCache {
	if t == nil || len(conf.Certificates) == 0 || len(conf.Certificates[0].Certificate) == 0 {
		return nil // whose certificate the ticket would hold is not known
	}
	own := sha256.Sum256(conf.Certificates[0].Certificate[0])
	return ticketCache{t, fmt.Sprintf("%s %s %s %s", transport, hub, conf.ServerName, hex.EncodeToString(own[:16]))}
}

type ticketCache struct {
	t    *tickets
	name string
}

func (c ticketCache) Get(string) (*tls.ClientSessionState, bool) {
	c.t.mu.Lock()
	i := slices.IndexFunc(c.t.list, func(x ticket) bool { return x.name == c.name })
	if i < 0 {
		c.t.mu.Unlock()
		return nil, false
	}
	x := c.t.list[i]
	c.t.mu.Unlock()
	ss, err := tls.ParseSessionState(x.secret)
	if err == nil {
		var cs *tls.ClientSessionState
		if cs, err = tls.NewResumptionState(x.label, ss); err == nil {
			return cs, true
		}
	}
	c.t.log.Warn("a kept TLS ticket cannot be used", "err", err)
	c.Put("", nil)
	return nil, false
}

func (c ticketCache) Put(_ string, cs *tls.ClientSessionState) {
	x := ticket{name: c.name}
	if cs != nil {
		label, ss, err := cs.ResumptionState()
		if err != nil || ss == nil {
			return
		}
		secret, err := ss.Bytes()
		if err != nil || len(label)+len(secret) > maxTicket {
			return
		}
		x.label, x.secret = label, secret
	}
	c.t.mu.Lock()
	c.t.list = slices.DeleteFunc(c.t.list, func(x ticket) bool { return x.name == c.name })
	if cs != nil {
		c.t.list = append(c.t.list, x)
	}
	if len(c.t.list) > maxTickets {
		c.t.list = c.t.list[1:]
	}
	c.t.dirty = true
	c.t.mu.Unlock()
	signal(c.t.wake)
}

// save writes what is new, not more often than every ticketSave, until done is closed; then what is left.
func (t *tickets) save(done <-chan struct{}) {
	if t.keep == nil {
		return
	}
	for {
		select {
		case <-done:
			t.write()
			return
		case <-t.wake:
		}
		t.write()
		pause := time.NewTimer(ticketSave)
		select {
		case <-done:
		case <-pause.C:
		}
		pause.Stop()
	}
}

func (t *tickets) write() {
	t.mu.Lock()
	dirty := t.dirty
	t.dirty = false
	var fields [][]byte
	for _, x := range t.list {
		fields = append(fields, []byte(x.name), x.label, x.secret)
	}
	t.mu.Unlock()
	if !dirty {
		return
	}
	if err := t.keep.Save(sealKept(ticketMagic, fields)); err != nil {
		t.log.Warn("TLS tickets not kept", "err", err)
	}
}
