package edge

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailrace/edge/auth"
	"tailrace/edge/limit"
	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
	"tailrace/uplink/pki"
)

// authenticator decides who may connect and what they may do: a verified client
// certificate, a line of the password file, or everybody when that is said; then the
// rules of the ACL file.
type authenticator struct {
	anonymous bool
	file, acl string
	inline    []string // rules of the configuration instead of a file
	binding   auth.Binding
	bound     bool // everybody, not only certificates
	now       func() time.Time
	policy    atomic.Pointer[policy]

	failed limit.Buckets // tokens of failed logins by address
	queue  auth.Queue    // of passwords to hash: a login storm leaves cores to the ingest
	worker *auth.Worker  // hashes them

	hashes, running, hashPeak atomic.Int64 // computed, under way, at most under way at once

	mu      sync.Mutex // guards the fields below; one reload at a time
	badFrom time.Time  // since when a file cannot be read; zero = it can
	// proven remembers logins that a hash has accepted, as HMACs under a key of this
	// process: 5,000 devices that come back after a power cut cost one hash each
	// since start, not one each time. Emptied when the files change.
	proven map[[32]byte]struct{}
	key    [32]byte
}

// policy is what the files say. It is immutable; a reload makes another.
type policy struct {
	users  *auth.Passwords // nil = no file
	rules  *auth.Rules     // nil = no rules configured: who is in may do everything
	broken error           // nobody may do anything
	stamps [2]fileStamp
}

type fileStamp struct {
	size int64
	mod  time.Time
}

const (
	maxProven = 100_000
	// A file that an editor is writing may be broken for a moment. When it changed by
	// itself it has so long; at a reload that was asked for there is no doubt.
	brokenGrace  = 10 * time.Second
	maxWaiting   = 64
	hashPatience = 5 * time.Second
)

func newAuthenticator(c AuthConfig, now func() time.Time) (*authenticator, error) {
	a := &authenticator{anonymous: c.AllowAnonymous, file: c.PasswordFile, acl: c.ACLFile, inline: c.ACL, worker: c.HashWorker, now: now,
		failed: limit.Buckets{Rate: c.FailedLogins.PerMinute / 60, Burst: float64(c.FailedLogins.Burst), Max: 16 << 10},
		proven: map[[32]byte]struct{}{}}
	a.queue = auth.Queue{Slots: min(2, max(1, runtime.GOMAXPROCS(0)/2)), Waiting: maxWaiting, Patience: hashPatience,
		Suspect: func(addr netip.Addr) bool { return !a.failed.Full(addr, a.now()) }}
	if _, err := io.ReadFull(rand.Reader, a.key[:]); err != nil {
		return nil, fmt.Errorf("draw key: %w", err)
	}
	var err error
	if c.BindClientID == nil || *c.BindClientID {
		a.bound = c.BindClientID != nil
		if a.binding, err = auth.NewBinding(c.ClientIDs); err != nil {
			return nil, fmt.Errorf("client_ids: %w", err)
		}
	}
	p, err := a.load()
	if err != nil {
		return nil, err
	}
	a.policy.Store(p)
	return a, nil
}

// load reads both files.
func (a *authenticator) load() (*policy, error) {
	p := &policy{stamps: a.stamps()}
	var err1, err2 error
	if a.file != "" {
		p.users, err1 = auth.LoadPasswords(a.file)
	}
	switch {
	case a.acl != "":
		p.rules, err2 = auth.LoadRules(a.acl)
	case a.inline != nil:
		if p.rules, err2 = auth.ReadRules(strings.NewReader(strings.Join(a.inline, "\n"))); err2 != nil {
			err2 = fmt.Errorf("acl %w", err2)
		}
	}
	return p, errors.Join(err1, err2)
}

func (a *authenticator) stamps() (s [2]fileStamp) {
	for i, f := range []string{a.file, a.acl} {
		if st, err := os.Stat(f); f != "" && err == nil {
			s[i] = fileStamp{st.Size(), st.ModTime()}
		}
	}
	return s
}

// reload reads the files again: when they have changed, or in any case when forced.
// changed: the policy is another now, and everybody has to be reviewed. A broken file
// leaves nobody any right, at once when forced, else if it stays broken.
func (a *authenticator) reload(force bool) (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.policy.Load()
	if a.file == "" && a.acl == "" || !force && a.badFrom.IsZero() && a.stamps() == old.stamps {
		return false, nil
	}
	p, err := a.load()
	now := a.now()
	if err != nil {
		if a.badFrom.IsZero() {
			a.badFrom = now
		}
		if !force && now.Sub(a.badFrom) < brokenGrace {
			return false, fmt.Errorf("%w (nobody will have any right if it stays so for %v)", err, brokenGrace)
		}
		if old.broken != nil && old.broken.Error() == err.Error() {
			return false, nil
		}
		p = &policy{broken: err, stamps: p.stamps}
	} else {
		a.badFrom = time.Time{}
	}
	a.policy.Store(p)
	clear(a.proven)
	return true, err
}

// credential is what a connection was let in by. It does not change after Authenticate.
type credential struct {
	hash string // of the password; "" for certificates and anonymous clients
}

func refusal(code packet.Code, format string, args ...any) *mqtt.ReasonError {
	return &mqtt.ReasonError{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// login returns the identity and what proves it, or a *mqtt.ReasonError.
func (a *authenticator) login(username string, password []byte, cert *x509.Certificate, from netip.Addr) (identity string, cr credential, err error) {
	p := a.policy.Load()
	if p.broken != nil {
		return "", cr, refusal(packet.ServerUnavailable, "access rules of the node cannot be read")
	}
	switch {
	case cert != nil:
		role, name := pki.Identity(cert)
		if name == "" || role == pki.RoleHub {
			return "", cr, refusal(packet.NotAuthorized, "the certificate names no device")
		}
		identity = auth.CertID(name)
	case username == "" && password == nil, a.file == "" && a.anonymous: // without a file the name proves nothing
		if !a.anonymous {
			return "", cr, refusal(packet.NotAuthorized, "a user name or a client certificate is required")
		}
		identity = auth.Anonymous
	case a.file == "":
		return "", cr, refusal(packet.BadUserOrPassword, "no password file is configured")
	default:
		if err := a.check(p, username, password, from); err != nil {
			return "", cr, err
		}
		identity = auth.UserID(username)
		cr.hash, _ = p.users.Lookup(username)
	}
	if p.rules != nil && p.rules.Refused(identity) {
		return "", cr, refusal(packet.NotAuthorized, "the identity is refused by a rule")
	}
	return identity, cr, nil
}

// credentials name a password that is being hashed. A policy of other files is another answer.
type credentials struct {
	p     *policy
	proof [32]byte
}

var errTooOften = refusal(packet.ConnectionRateTooHigh, "too many failed logins from this address")

// check compares a password. What limits bad logins comes before the hash: an address
// has so many failures, few hashes run at once, and few logins wait for one (auth.Queue). A login
// that was accepted before costs neither.
func (a *authenticator) check(p *policy, username string, password []byte, from netip.Addr) error {
	proof := a.proof(username, password)
	a.mu.Lock()
	_, known := a.proven[proof]
	known = known && a.policy.Load() == p
	a.mu.Unlock()
	if known {
		return nil
	}
	if !a.failed.Has(from, a.now()) {
		return errTooOften
	}
	counted := false
	ok, err := a.queue.Do(credentials{p, proof}, from, func() (bool, error) {
		// Asked again: a burst of one address had waited together.
		if !a.failed.Has(from, a.now()) {
			return false, errTooOften
		}
		a.hashes.Add(1)
		if n := a.running.Add(1); n > a.hashPeak.Load() {
			a.hashPeak.Store(n)
		}
		defer a.running.Add(-1)
		ok := p.users.Verify(username, password, a.worker)
		if !ok { // before the next one is chosen
			a.failed.Take(from, a.now())
			counted = true
		}
		return ok, nil
	})
	if errors.Is(err, auth.ErrBusy) {
		if !a.failed.Full(from, a.now()) { // a guesser that goes on is soon not listened to any more
			a.failed.Take(from, a.now())
		}
		return refusal(packet.ServerBusy, "%v", err)
	}
	if err != nil {
		return err
	}
	if !ok {
		if !counted && !a.failed.Take(from, a.now()) {
			return errTooOften
		}
		return refusal(packet.BadUserOrPassword, "unknown user or wrong password")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.policy.Load() == p { // else the files have changed meanwhile
		if len(a.proven) >= maxProven {
			clear(a.proven)
		}
		a.proven[proof] = struct{}{}
	}
	return nil
}

// mayTry: an address that has failed too often is not listened to at all. The server asks
// only about those where nobody is logged in: a plant behind one address with one bad
// device stays reachable.
func (a *authenticator) mayTry(addr netip.Addr) bool { return a.failed.Has(addr, a.now()) }

func (a *authenticator) proof(username string, password []byte) (p [32]byte) {
	h := hmac.New(sha256.New, a.key[:])
	fmt.Fprintf(h, "%d:%s", len(username), username)
	h.Write(password)
	h.Sum(p[:0])
	return p
}

// mayUse reports whether an identity may have a client id.
func (a *authenticator) mayUse(identity, clientID string) bool {
	if a.binding.None() {
		return true
	}
	if a.bound || auth.IsCert(identity) {
		return a.binding.Allows(identity, clientID)
	}
	owner := a.policy.Load().users.Owner(clientID, a.binding)
	return owner == "" || owner == auth.Name(identity)
}

// still reports whether an identity that is in may stay: its user exists with the same
// password, and no rule refuses it.
func (a *authenticator) still(identity string, cr credential) error {
	p := a.policy.Load()
	switch {
	case p.broken != nil:
		return refusal(packet.NotAuthorized, "access rules of the node cannot be read")
	case p.rules != nil && p.rules.Refused(identity):
		return refusal(packet.NotAuthorized, "the identity is refused by a rule now")
	case cr.hash != "":
		if h, ok := p.users.Lookup(auth.Name(identity)); !ok || h != cr.hash {
			return refusal(packet.NotAuthorized, "user or password are not valid any more")
		}
	}
	return nil
}

// may asks the rules.
func (a *authenticator) may(identity, client string, what auth.Action, topic string) bool {
	p := a.policy.Load()
	return p.broken == nil && (p.rules == nil || p.rules.Allows(auth.Subject{Identity: identity, Client: client}, what, topic))
}

// addrOf is the address of a client; those without an IP address share the zero one.
func addrOf(remote string) netip.Addr {
	ap, _ := netip.ParseAddrPort(remote)
	return ap.Addr().Unmap()
}
