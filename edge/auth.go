package edge

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
	"tailrace/uplink/pki"
)

// authenticator decides who may connect: a verified client certificate, a line of
// the password file, or everybody when that is said.
type authenticator struct {
	anonymous bool
	file      string
	now       func() time.Time
	hashing   chan struct{} // one token per bcrypt under way: a login storm leaves cores to the ingest

	mu      sync.Mutex // guards the fields below
	users   map[string][]byte
	stamp   fileStamp
	checked time.Time // when the file was last looked at
	// proven remembers logins that bcrypt has accepted, as HMACs under a key of this
	// process: 5,000 devices that come back after a power cut cost one bcrypt each
	// since start, not one each time. Emptied when the file changes.
	proven map[[32]byte]struct{}
	key    [32]byte
}

type fileStamp struct {
	size int64
	mod  time.Time
}

const (
	maxUsers        = 100_000
	maxProven       = 100_000
	recheckInterval = 2 * time.Second
)

// decoy is compared with when the user is unknown, so that the time taken does not
// tell which names exist.
var decoy = sync.OnceValue(func() []byte {
	h, err := bcrypt.GenerateFromPassword([]byte("decoy"), bcrypt.DefaultCost)
	if err != nil {
		panic("internal error: bcrypt: " + err.Error())
	}
	return h
})

func newAuthenticator(c AuthConfig, now func() time.Time) (*authenticator, error) {
	a := &authenticator{anonymous: c.AllowAnonymous, file: c.PasswordFile, now: now,
		hashing: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), proven: map[[32]byte]struct{}{}}
	if _, err := io.ReadFull(rand.Reader, a.key[:]); err != nil {
		return nil, fmt.Errorf("draw key: %w", err)
	}
	if a.file == "" {
		return a, nil
	}
	st, err := os.Stat(a.file)
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	if a.users, err = loadPasswords(a.file); err != nil {
		return nil, err
	}
	a.stamp, a.checked = fileStamp{st.Size(), st.ModTime()}, now()
	return a, nil
}

// loadPasswords reads lines "user:bcrypt hash"; blank lines and "#" are comments.
func loadPasswords(file string) (map[string][]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	defer f.Close()
	users := map[string][]byte{}
	s := bufio.NewScanner(f)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); !ok || user == "" || err != nil {
			return nil, fmt.Errorf("password file %s line %d: want \"user:$2y$…\" (bcrypt; htpasswd -nB USER prints such a line)", file, n)
		}
		if _, twice := users[user]; twice {
			return nil, fmt.Errorf("password file %s line %d: user %q is there twice", file, n, user)
		}
		if users[user] = []byte(hash); len(users) > maxUsers {
			return nil, fmt.Errorf("password file %s: more than %d users", file, maxUsers)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("password file %s: %w", file, err)
	}
	return users, nil
}

// refresh reads the file again when it has changed. A file that cannot be read
// keeps the old users: a half-written file must not lock a plant out.
func (a *authenticator) refresh() (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if a.file == "" || now.Sub(a.checked) < recheckInterval {
		return false, nil
	}
	return a.load(now, false)
}

// reload reads the file whether or not it seems changed.
func (a *authenticator) reload() (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == "" {
		return false, nil
	}
	return a.load(a.now(), true)
}

// load is called with mu held.
func (a *authenticator) load(now time.Time, force bool) (bool, error) {
	a.checked = now
	st, err := os.Stat(a.file)
	if err != nil {
		return false, err
	}
	stamp := fileStamp{st.Size(), st.ModTime()}
	if stamp == a.stamp && !force {
		return false, nil
	}
	users, err := loadPasswords(a.file)
	if err != nil {
		return false, err
	}
	a.users, a.stamp = users, stamp
	clear(a.proven)
	return true, nil
}

// login returns the identity, or a *mqtt.ReasonError.
func (a *authenticator) login(username string, password []byte, cert *x509.Certificate) (string, error) {
	if cert != nil {
		if role, name := pki.Identity(cert); name != "" && role != pki.RoleHub {
			return "cert:" + name, nil
		}
		return "", &mqtt.ReasonError{Code: packet.NotAuthorized, Reason: "the certificate names no device"}
	}
	if username == "" && password == nil {
		if a.anonymous {
			return "", nil
		}
		return "", &mqtt.ReasonError{Code: packet.NotAuthorized, Reason: "a user name or a client certificate is required"}
	}
	if a.file == "" {
		if a.anonymous {
			return "", nil // nothing to check it against: the name proves nothing
		}
		return "", &mqtt.ReasonError{Code: packet.BadUserOrPassword, Reason: "no password file is configured"}
	}
	if a.check(username, password) {
		return "user:" + username, nil
	}
	return "", &mqtt.ReasonError{Code: packet.BadUserOrPassword, Reason: "unknown user or wrong password"}
}

func (a *authenticator) check(username string, password []byte) bool {
	proof := a.proof(username, password)
	a.mu.Lock()
	_, known := a.proven[proof]
	hash, ok := a.users[username]
	stamp := a.stamp
	a.mu.Unlock()
	if known {
		return true
	}
	if !ok {
		hash = decoy()
	}
	a.hashing <- struct{}{}
	err := bcrypt.CompareHashAndPassword(hash, password)
	<-a.hashing
	if !ok || err != nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stamp == stamp { // else the file has changed meanwhile
		if len(a.proven) >= maxProven {
			clear(a.proven)
		}
		a.proven[proof] = struct{}{}
	}
	return true
}

func (a *authenticator) proof(username string, password []byte) (p [32]byte) {
	h := hmac.New(sha256.New, a.key[:])
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d:%s", len(username), username)
	h.Write(b.Bytes())
	h.Write(password)
	h.Sum(p[:0])
	return p
}
