// Package access says who a Kafka client is and what it may do: users with
// SCRAM verifiers from one file, rules by topic and group from another. Both are
// read again when they change; a file that cannot be read then leaves what was
// known.
package access

import (
	"bufio"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Mechanisms, in the order in which a client is told of them.
const (
	ScramSHA512 = "SCRAM-SHA-512"
	ScramSHA256 = "SCRAM-SHA-256"
	Plain       = "PLAIN"
)

// Mechanisms are those that [Users] serves.
func Mechanisms() []string { return []string{ScramSHA512, ScramSHA256, Plain} }

const (
	iterations    = 8192 // of what Line makes
	minIterations = 4096
	maxIterations = 1 << 17 // a login costs us as many
	saltBytes     = 16
)

// Anonymous is the name in rules of clients that have not proved to be anyone.
const Anonymous = "anonymous"

// verifier is what the server keeps of a password (RFC 5802): it proves nothing
// to another server, and the password is not found from it but by guessing.
type verifier struct {
	salt           []byte
	iterations     int
	stored, server []byte
}

var hashes = map[string]func() hash.Hash{ScramSHA256: sha256.New, ScramSHA512: sha512.New}

func derive(mech, password string, salt []byte, n int) (verifier, error) {
	h := hashes[mech]
	salted, err := pbkdf2.Key(h, password, salt, n, h().Size())
	if err != nil {
		return verifier{}, err
	}
	clientKey := mac(h, salted, "Client Key")
	d := h()
	d.Write(clientKey)
	return verifier{salt, n, d.Sum(nil), mac(h, salted, "Server Key")}, nil
}

func mac(h func() hash.Hash, key []byte, text string) []byte {
	m := hmac.New(h, key)
	io.WriteString(m, text)
	return m.Sum(nil)
}

// Line makes the line of a users file for a user.
func Line(name, password string) (string, error) {
	if err := validName(name); err != nil {
		return "", err
	}
	if password == "" || len(password) > 1024 || strings.ContainsRune(password, 0) {
		return "", errors.New("a password has 1 to 1024 bytes")
	}
	line := name
	for _, mech := range []string{ScramSHA256, ScramSHA512} {
		salt := make([]byte, saltBytes)
		rand.Read(salt)
		v, err := derive(mech, password, salt, iterations)
		if err != nil {
			return "", err
		}
		b64 := base64.StdEncoding.EncodeToString
		line += fmt.Sprintf(":%s$%d$%s$%s$%s", mech, v.iterations, b64(v.salt), b64(v.stored), b64(v.server))
	}
	return line, nil
}

func validName(name string) error {
	if name == "" || len(name) > 255 || name == Anonymous || strings.ContainsAny(name, ":# \t\r\n\x00*?[\\") {
		return fmt.Errorf("user name %q: 1 to 255 bytes without space : # * ? [ \\, and not %q", name, Anonymous)
	}
	return nil
}

// table is one reading of a users file.
type table map[string]map[string]verifier

func readUsers(r io.Reader) (table, error) {
	t := make(table)
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, _ := strings.Cut(line, ":")
		bad := func(err error) (table, error) { return nil, fmt.Errorf("line %d: %w", n, err) }
		if err := validName(name); err != nil {
			return bad(err)
		}
		if t[name] != nil {
			return bad(fmt.Errorf("user %q is there twice", name))
		}
		t[name] = make(map[string]verifier)
		for field := range strings.SplitSeq(rest, ":") {
			mech, v, err := parseVerifier(field)
			if err != nil {
				return bad(fmt.Errorf("user %q: %w (tailrace kafka-user makes the line)", name, err))
			}
			t[name][mech] = v
		}
	}
	return t, sc.Err()
}

func parseVerifier(s string) (mech string, v verifier, err error) {
	f := strings.Split(s, "$")
	if len(f) != 5 || hashes[f[0]] == nil {
		return "", v, errors.New("not a SCRAM-SHA-256 or SCRAM-SHA-512 verifier")
	}
	if v.iterations, err = strconv.Atoi(f[1]); err != nil || v.iterations < minIterations || v.iterations > maxIterations {
		return "", v, fmt.Errorf("iterations %q: %d to %d", f[1], minIterations, maxIterations)
	}
	for i, dst := range []*[]byte{&v.salt, &v.stored, &v.server} {
		if *dst, err = base64.StdEncoding.DecodeString(f[2+i]); err != nil {
			return "", v, err
		}
	}
	if size := hashes[f[0]]().Size(); len(v.salt) < 8 || len(v.stored) != size || len(v.server) != size {
		return "", v, errors.New("a part of the verifier has the wrong length")
	}
	return f[0], v, nil
}

// Users authenticates by a users file. Safe for concurrent use.
type Users struct {
	file   *watched[table]
	secret [32]byte      // makes salts of users that do not exist
	work   chan struct{} // slots for password hashing: guessing takes half the machine at most
}

// LoadUsers reads the file. failed is told when it cannot be read again later;
// nil ignores.
func LoadUsers(file string, failed func(error)) (*Users, error) {
	w, err := watch(file, readUsers, failed)
	if err != nil {
		return nil, err
	}
	u := &Users{file: w, work: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	rand.Read(u.secret[:])
	return u, nil
}

// errDenied is all that a client is told: not whether the user exists.
var errDenied = errors.New("user name or password is wrong")

// Session is one authentication of a client.
type Session struct {
	u     *Users
	mech  string
	step  int
	user  string
	known bool
	v     verifier
	bare  string // client-first-message-bare
	gs2   string
	first string // server-first-message
	nonce string
}

// Begin starts an authentication; nil when the mechanism is not served.
func (u *Users) Begin(mechanism string) *Session {
	if mechanism != Plain && hashes[mechanism] == nil {
		return nil
	}
	return &Session{u: u, mech: mechanism}
}

// Next takes a message of the client and returns the answer. user is not empty
// when the client has proved to be that user. After an error the session is of
// no use.
func (s *Session) Next(msg []byte) (answer []byte, user string, err error) {
	s.step++
	switch {
	case s.mech == Plain && s.step == 1:
		user, err = s.plain(string(msg))
		return nil, user, err
	case s.step == 1:
		answer, err = s.clientFirst(string(msg))
		return answer, "", err
	case s.mech != Plain && s.step == 2:
		return s.clientFinal(string(msg))
	}
	return nil, "", errors.New("a message more than the mechanism has")
}

// plain checks PLAIN (RFC 4616) against whichever verifier the user has.
func (s *Session) plain(msg string) (string, error) {
	f := strings.Split(msg, "\x00")
	if len(f) != 3 || f[1] == "" || f[2] == "" || len(f[2]) > 1024 {
		return "", errors.New("malformed PLAIN message")
	}
	if f[0] != "" && f[0] != f[1] {
		return "", errors.New("acting for another user is not supported")
	}
	name, mech := f[1], ScramSHA256
	vs, known := s.u.file.get()[name]
	v, ok := vs[mech]
	if known && !ok {
		mech = ScramSHA512
		v = vs[mech]
	}
	if !known {
		v = s.u.decoy(name, mech)
	}
	s.u.work <- struct{}{}
	got, err := derive(mech, f[2], v.salt, v.iterations)
	<-s.u.work
	if err != nil || subtle.ConstantTimeCompare(got.stored, v.stored) != 1 || !known {
		return "", errDenied
	}
	return name, nil
}

// decoy is what a user that does not exist is shown: always the same salt.
func (u *Users) decoy(name, mech string) verifier {
	salt := mac(sha256.New, u.secret[:], mech+name)[:saltBytes]
	zero := make([]byte, hashes[mech]().Size())
	return verifier{salt, iterations, zero, zero}
}

func (s *Session) clientFirst(msg string) ([]byte, error) {
	// gs2-cbind-flag "," [ authzid ] "," then n=,r= and extensions.
	flag, rest, ok1 := strings.Cut(msg, ",")
	authz, bare, ok2 := strings.Cut(rest, ",")
	if !ok1 || !ok2 || len(msg) > 4096 {
		return nil, errors.New("malformed first SCRAM message")
	}
	if flag != "n" && flag != "y" {
		return nil, errors.New("channel binding is not supported")
	}
	f := strings.Split(bare, ",")
	if len(f) < 2 || !strings.HasPrefix(f[0], "n=") || !strings.HasPrefix(f[1], "r=") || len(f[1]) < 10 {
		return nil, errors.New("malformed first SCRAM message")
	}
	name := strings.NewReplacer("=2C", ",", "=3D", "=").Replace(f[0][2:])
	if authz != "" && authz != "a="+f[0][2:] {
		return nil, errors.New("acting for another user is not supported")
	}
	s.gs2, s.bare, s.user = flag+","+authz+",", bare, name
	s.v, s.known = s.u.file.get()[name][s.mech]
	if !s.known {
		s.v = s.u.decoy(name, s.mech)
	}
	s.nonce = f[1][2:] + rand.Text()
	s.first = fmt.Sprintf("r=%s,s=%s,i=%d", s.nonce, base64.StdEncoding.EncodeToString(s.v.salt), s.v.iterations)
	return []byte(s.first), nil
}

func (s *Session) clientFinal(msg string) ([]byte, string, error) {
	without, p, ok := strings.Cut(msg, ",p=")
	if !ok || len(msg) > 4096 {
		return nil, "", errors.New("malformed last SCRAM message")
	}
	proof, err := base64.StdEncoding.DecodeString(p)
	h := hashes[s.mech]
	if err != nil || len(proof) != h().Size() {
		return nil, "", errors.New("malformed last SCRAM message")
	}
	// librdkafka before 2.8 sends its own nonce once more before ours. It is part
	// of what the proof covers, so that Kafka's rule, the end must be right, is
	// enough.
	nonce, ok := strings.CutPrefix(without, "c="+base64.StdEncoding.EncodeToString([]byte(s.gs2))+",r=")
	if !ok || !strings.HasSuffix(nonce, s.nonce) {
		return nil, "", errors.New("the last SCRAM message does not belong to the first")
	}
	auth := s.bare + "," + s.first + "," + without
	sig := mac(h, s.v.stored, auth)
	key := make([]byte, len(proof))
	subtle.XORBytes(key, proof, sig)
	d := h()
	d.Write(key)
	if subtle.ConstantTimeCompare(d.Sum(nil), s.v.stored) != 1 || !s.known {
		return nil, "", errDenied
	}
	return []byte("v=" + base64.StdEncoding.EncodeToString(mac(h, s.v.server, auth))), s.user, nil
}

// watched is a file that is read again when it has changed.
type watched[T any] struct {
	path   string
	parse  func(io.Reader) (T, error)
	failed func(error)

	mu      sync.Mutex // guards what follows
	value   T
	stat    os.FileInfo
	checked time.Time
}

const recheck = time.Second

func watch[T any](path string, parse func(io.Reader) (T, error), failed func(error)) (*watched[T], error) {
	w := &watched[T]{path: path, parse: parse, failed: failed}
	return w, w.load()
}

func (w *watched[T]) load() error {
	f, err := os.Open(w.path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	w.stat = st // also of a file with a fault: it is reported once
	v, err := w.parse(f)
	if err != nil {
		return fmt.Errorf("%s: %w", w.path, err)
	}
	w.value = v
	return nil
}

func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.checked) >= recheck {
		w.checked = now
		st, err := os.Stat(w.path)
		if err == nil && (w.stat == nil || st.ModTime() != w.stat.ModTime() || st.Size() != w.stat.Size() || !os.SameFile(st, w.stat)) {
			err = w.load()
		}
		if err != nil && w.failed != nil {
			w.failed(err)
		}
	}
	return w.value
}
