package auth

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

const (
	maxUsers     = 100_000
	maxNameBytes = 256
	maxLineBytes = 1024
)

// Passwords are the users of one password file. The zero value knows nobody.
//
// The file has lines "name:hash"; the hash is argon2id in the PHC format (what
// `tailrace passwd` writes) or bcrypt (htpasswd -B). Blank lines and lines that begin
// with "#" are comments.
type Passwords struct{ hash map[string]string }

// LoadPasswords reads a file; the error names the line.
func LoadPasswords(file string) (*Passwords, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	defer f.Close()
	p, err := ReadPasswords(f)
	if err != nil {
		return nil, fmt.Errorf("password file %s %w", file, err)
	}
	return p, nil
}

// ReadPasswords reads lines.
func ReadPasswords(r io.Reader) (*Passwords, error) {
	p := &Passwords{hash: map[string]string{}}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLineBytes)
	for n := 1; s.Scan(); n++ {
		name, hash, ok := passwordLine(s.Text())
		if !ok {
			continue
		}
		if err := CheckName(name); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if err := checkHash(hash); err != nil {
			return nil, fmt.Errorf("line %d: want \"user:hash\" as `tailrace passwd` writes it, or bcrypt as htpasswd -B does: %w", n, err)
		}
		if _, twice := p.hash[name]; twice {
			return nil, fmt.Errorf("line %d: user %q is there twice", n, name)
		}
		if p.hash[name] = hash; len(p.hash) > maxUsers {
			return nil, fmt.Errorf("line %d: more than %d users", n, maxUsers)
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return p, nil
}

// passwordLine: ok is false for comments. A line without a colon is a name without a hash.
func passwordLine(line string) (name, hash string, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", "", false
	}
	name, hash, _ = strings.Cut(line, ":")
	return name, hash, true
}

// CheckName refuses names that a line cannot hold.
func CheckName(name string) error {
	if name == "" || len(name) > maxNameBytes || !utf8.ValidString(name) || name[0] == '#' || strings.TrimSpace(name) != name || strings.ContainsRune(name, ':') ||
		strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("user name %.40q: want 1 to %d bytes without colon, control characters, blanks at the ends or # at the beginning", name, maxNameBytes)
	}
	return nil
}

// Names of all users, sorted.
func (p *Passwords) Names() []string { return slices.Sorted(maps.Keys(p.hash)) }

// Len is how many users there are.
func (p *Passwords) Len() int { return len(p.hash) }

// Lookup returns the hash of a user. A changed password is a changed hash.
func (p *Passwords) Lookup(name string) (hash string, ok bool) {
	if p == nil {
		return "", false
	}
	hash, ok = p.hash[name]
	return hash, ok
}

// decoy is compared with when the user is unknown, so that the time taken does not
// tell which names exist. It is drawn, not hashed: no password is known to fit, and one that did
// would let nobody in.
var decoy = sync.OnceValue(func() string {
	h := argonHash{memory: argonMemory, time: argonTime, lanes: argonLanes, salt: make([]byte, saltBytes), key: make([]byte, keyBytes)}
	rand.Read(h.salt)
	rand.Read(h.key)
	return h.String()
})

// Verify takes about as long for an unknown name as for a known one. by computes the hash.
func (p *Passwords) Verify(name string, password []byte, by *Worker) bool {
	hash, ok := p.Lookup(name)
	if !ok {
		hash = decoy()
	}
	return by.Verify(hash, password) && ok
}

// ErrNoUser: the file has no such user.
var ErrNoUser = errors.New("no such user")

// SetPassword adds a user or changes its hash, in place; everything else of the file
// stays as it is. A file that does not exist is made.
func SetPassword(file, name, hash string) (added bool, err error) {
	if err := errors.Join(CheckName(name), checkHash(hash)); err != nil {
		return false, err
	}
	err = edit(file, func(lines []string) ([]string, error) {
		line := name + ":" + hash
		for i, l := range lines {
			if n, _, ok := passwordLine(l); ok && n == name {
				lines[i] = line
				return lines, nil
			}
		}
		added = true
		return append(lines, line), nil
	})
	return added, err
}

// DeletePassword removes a user.
func DeletePassword(file, name string) error {
	return edit(file, func(lines []string) ([]string, error) {
		kept := slices.DeleteFunc(slices.Clone(lines), func(l string) bool {
			n, _, ok := passwordLine(l)
			return ok && n == name
		})
		if len(kept) == len(lines) {
			return nil, fmt.Errorf("%q: %w", name, ErrNoUser)
		}
		return kept, nil
	})
}

// edit replaces the file as a whole: write a temporary file (0600, the old owner),
// fsync, rename over it, fsync the directory. A reader sees the old or the new one. A
// broken file is not touched.
func edit(file string, change func([]string) ([]string, error)) error {
	if target, err := filepath.EvalSymlinks(file); err == nil {
		file = target // replace what the link names, not the link
	}
	dir := filepath.Dir(file)
	unlock, err := lockDir(dir)
	if err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	defer unlock()
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	existed := err == nil
	if _, err := ReadPasswords(bytes.NewReader(old)); err != nil {
		return fmt.Errorf("password file %s is left as it is: %w", file, err)
	}
	var lines []string
	if s := strings.TrimSuffix(string(old), "\n"); s != "" {
		lines = strings.Split(s, "\n")
	}
	if lines, err = change(lines); err != nil {
		return err
	}
	var out bytes.Buffer
	for _, l := range lines {
		out.WriteString(l + "\n")
	}
	f, err := os.CreateTemp(dir, ".passwd-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no longer there after the rename
	if existed {
		if err := sameOwner(f, file); err != nil {
			f.Close()
			return err
		}
	}
	_, err = f.Write(out.Bytes())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
