package link

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// ticketKeys are the keys of a hub's session tickets, newest first. They are kept over
// restarts: else the whole fleet comes back with whole handshakes in the moment in which the
// hub has most to do.
//
// A ticket vouches for the node's certificate chain, and is as good as the chain is when it is used:
// crypto/tls looks again whether each certificate of it is valid now and whether its root is
// among ClientCAs now (checkForResumption), and VerifyConnection runs as for a whole handshake.
// Without that, resumption after resumption would need no private key for ever: sinceProof bounds it.
type ticketKeys struct {
	keep Keeper // nil = not over restarts
	log  *slog.Logger
	now  func() time.Time

	mu   sync.Mutex // guards the following
	keys []ticketKey
	conf *tls.Config // seals and opens with keys
}

type ticketKey struct {
	made time.Time
	key  [32]byte
}

const (
	ticketKeyMagic = "TRTKEYS1"
	ticketKeyLife  = 24 * time.Hour // then a new one is used for new tickets
	sinceProof     = 7 * 24 * time.Hour
	maxTicketKeys  = int(sinceProof/ticketKeyLife) + 1
)

func newTicketKeys(keep Keeper, log *slog.Logger, now func() time.Time) *ticketKeys {
	if now == nil {
		now = time.Now
	}
	k := &ticketKeys{keep: keep, log: log, now: now, conf: &tls.Config{}}
	if keep != nil {
		fields, err := openKept(ticketKeyMagic, keep, maxTicketKeys)
		for _, f := range fields {
			if len(f) != 8+32 {
				k.keys, err = nil, errors.New("damaged")
				break
			}
			k.keys = append(k.keys, ticketKey{time.Unix(int64(binary.BigEndian.Uint64(f)), 0), [32]byte(f[8:])})
		}
		if err != nil {
			log.Warn("the kept keys of TLS tickets cannot be used, nodes come back with whole handshakes", "err", err)
		}
	}
	k.set(now())
	return k
}

// set drops what is too old, and makes a key when the newest is. The caller has mu, or is alone.
func (k *ticketKeys) set(now time.Time) {
	k.keys = slices.DeleteFunc(k.keys, func(x ticketKey) bool { return now.Sub(x.made) > sinceProof+ticketKeyLife })
	// One of the future was made before the clock was set back.
	if len(k.keys) == 0 || now.Sub(k.keys[0].made).Abs() >= ticketKeyLife {
		x := ticketKey{made: now}
		rand.Read(x.key[:])
		k.keys = slices.Insert(k.keys, 0, x)
		k.keys = k.keys[:min(len(k.keys), maxTicketKeys)]
		if k.keep != nil {
			var fields [][]byte
			for _, x := range k.keys {
				fields = append(fields, append(binary.BigEndian.AppendUint64(nil, uint64(x.made.Unix())), x.key[:]...))
			}
			if err := k.keep.Save(sealKept(ticketKeyMagic, fields)); err != nil {
				k.log.Warn("keys of TLS tickets not kept: after a restart nodes come back with whole handshakes", "err", err)
			}
		}
	}
	keys := make([][32]byte, len(k.keys))
	for i, x := range k.keys {
		keys[i] = x.key
	}
	k.conf.SetSessionTicketKeys(keys)
}

// proofMark begins the field of a ticket that says when the node last proved, in a whole
// handshake, that it has the private key: 8 bytes of seconds follow.
const proofMark = "tailrace proof"

// serve makes conf issue and take tickets sealed with these keys.
func (k *ticketKeys) serve(conf *tls.Config) *tls.Config {
	outer := conf.Clone()
	outer.GetConfigForClient = func(info *tls.ClientHelloInfo) (*tls.Config, error) {
		inner := conf
		if f := conf.GetConfigForClient; f != nil {
			if c, err := f(info); err != nil {
				return nil, err
			} else if c != nil {
				inner = c
			}
		}
		inner = inner.Clone()
		inner.GetConfigForClient = nil
		var proof time.Time // of this connection
		inner.UnwrapSession = func(label []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
			ss, err := k.conf.DecryptTicket(label, cs)
			if ss == nil || err != nil {
				return nil, err
			}
			for _, x := range ss.Extra {
				if len(x) == len(proofMark)+8 && string(x[:len(proofMark)]) == proofMark {
					proof = time.Unix(int64(binary.BigEndian.Uint64(x[len(proofMark):])), 0)
				}
			}
			if k.now().Sub(proof).Abs() > sinceProof {
				return nil, nil // a whole handshake, then
			}
			return ss, nil
		}
		inner.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
			now := k.now()
			if !cs.DidResume {
				proof = now
			}
			ss.Extra = append(ss.Extra, binary.BigEndian.AppendUint64([]byte(proofMark), uint64(proof.Unix())))
			k.mu.Lock()
			if now.Sub(k.keys[0].made).Abs() >= ticketKeyLife {
				k.set(now)
			}
			k.mu.Unlock()
			return k.conf.EncryptTicket(cs, ss)
		}
		return inner, nil
	}
	return outer
}
