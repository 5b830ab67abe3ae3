package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// Cost of new hashes: of the settings that OWASP calls equal the one with little
// memory, because two at once have to fit beside the log on a 512 MB board.
const (
	argonMemory = 9 << 10 // KiB
	argonTime   = 4
	argonLanes  = 1
	saltBytes   = 16
	keyBytes    = 32
)

// What a line of a password file may ask for: it must not take the node down.
const (
	maxArgonMemory = 64 << 10 // KiB
	maxArgonTime   = 16
	maxArgonLanes  = 4
	maxBcryptCost  = 14
)

// MaxPasswordBytes of a new password; bcrypt would ignore what is beyond 72.
const MaxPasswordBytes = 1024

var b64 = base64.RawStdEncoding

// Hash makes the argon2id hash of a password in the PHC string format:
// $argon2id$v=19$m=9216,t=4,p=1$salt$key
func Hash(password []byte) (string, error) {
	if len(password) == 0 || len(password) > MaxPasswordBytes {
		return "", fmt.Errorf("password of %d bytes: want 1 to %d", len(password), MaxPasswordBytes)
	}
	salt := make([]byte, saltBytes)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("draw salt: %w", err)
	}
	h := argonHash{memory: argonMemory, time: argonTime, lanes: argonLanes, salt: salt}
	h.key = h.derive(password, keyBytes)
	return h.String(), nil
}

type argonHash struct {
	memory, time uint32
	lanes        uint8
	salt, key    []byte
}

func (h *argonHash) derive(password []byte, n int) []byte {
	return argon2.IDKey(password, h.salt, h.time, h.memory, h.lanes, uint32(n))
}

func (h *argonHash) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.lanes, b64.EncodeToString(h.salt), b64.EncodeToString(h.key))
}

func parseArgon(s string) (*argonHash, error) {
	f := strings.Split(s, "$") // "", argon2id, v=, m=,t=,p=, salt, key
	if len(f) != 6 || f[1] != "argon2id" || f[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return nil, errors.New("want $argon2id$v=19$m=…,t=…,p=…$salt$key")
	}
	var h argonHash
	if n, err := fmt.Sscanf(f[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.lanes); n != 3 || err != nil || f[3] != fmt.Sprintf("m=%d,t=%d,p=%d", h.memory, h.time, h.lanes) {
		return nil, fmt.Errorf("argon2id parameters %q", f[3])
	}
	if h.memory < 8*uint32(h.lanes) || h.memory > maxArgonMemory || h.time < 1 || h.time > maxArgonTime || h.lanes < 1 || h.lanes > maxArgonLanes {
		return nil, fmt.Errorf("argon2id parameters %q: want at most m=%d,t=%d,p=%d", f[3], maxArgonMemory, maxArgonTime, maxArgonLanes)
	}
	var err1, err2 error
	h.salt, err1 = b64.DecodeString(f[4])
	h.key, err2 = b64.DecodeString(f[5])
	if err := errors.Join(err1, err2); err != nil || len(h.salt) < 8 || len(h.salt) > 64 || len(h.key) < 16 || len(h.key) > 64 {
		return nil, errors.New("argon2id salt or key: want base64 of 8 to 64 and 16 to 64 bytes")
	}
	return &h, nil
}

// checkHash refuses what Verify could not compare, or only at a cost that hurts.
func checkHash(s string) error {
	if strings.HasPrefix(s, "$argon2id$") {
		_, err := parseArgon(s)
		return err
	}
	cost, err := bcrypt.Cost([]byte(s))
	if err == nil && cost > maxBcryptCost {
		return fmt.Errorf("bcrypt cost %d: want at most %d", cost, maxBcryptCost)
	}
	return err
}

// VerifyHash compares in a time that depends on the hash, not on the password.
func VerifyHash(hash string, password []byte) bool {
	if !strings.HasPrefix(hash, "$argon2id$") {
		return bcrypt.CompareHashAndPassword([]byte(hash), password) == nil
	}
	h, err := parseArgon(hash)
	if err != nil || len(password) > 65535 {
		return false
	}
	return subtle.ConstantTimeCompare(h.derive(password, len(h.key)), h.key) == 1
}
