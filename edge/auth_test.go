package edge_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"tailrace/edge"
	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
	"tailrace/uplink/pki"
)

func hash(t *testing.T, pw string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(pw), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func code(err error) packet.Code {
	var re *mqtt.ReasonError
	if errors.As(err, &re) {
		return re.Code
	}
	return 0
}

func TestOnlyKnownUsersAndCertificatesComeIn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	write := func(s string, at time.Time) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chtimes(file, at, at)
	}
	now := time.Now()
	write("# devices\nt01:"+hash(t, "secret")+"\n\n", now)
	a, err := edge.NewAuthenticator(edge.AuthConfig{PasswordFile: file}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, password, identity string
		code                     packet.Code
	}{
		{"t01", "secret", "user:t01", 0},
		{"t01", "secret", "user:t01", 0}, // from memory
		{"t01", "wrong", "", packet.BadUserOrPassword},
		{"t02", "secret", "", packet.BadUserOrPassword},
		{"t01", "", "", packet.BadUserOrPassword},
		{"", "", "", packet.NotAuthorized},
	} {
		pw := []byte(c.password)
		if c.user == "" {
			pw = nil
		}
		if id, err := a.Login(c.user, pw, nil); id != c.identity || code(err) != c.code {
			t.Errorf("%q/%q: %q, %v", c.user, c.password, id, err)
		}
	}

	write("t01:"+hash(t, "changed")+"\n", now.Add(time.Second)) // seen at the next look
	now = now.Add(time.Minute)
	if _, err := a.Login("t01", []byte("secret"), nil); code(err) != packet.BadUserOrPassword {
		t.Errorf("the old password still opens: %v", err)
	}
	if id, err := a.Login("t01", []byte("changed"), nil); id != "user:t01" {
		t.Errorf("the new password: %v", err)
	}

	ca, _, err := pki.NewCA(rand.Reader, "test", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for role, want := range map[pki.Role]string{pki.RoleDevice: "cert:plc-1", pki.RoleHub: ""} {
		pair, err := ca.Issue(rand.Reader, role, "plc-1", nil, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(pair.Cert)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if id, _ := a.Login("", nil, cert); id != want {
			t.Errorf("%s certificate: %q, want %q", role, id, want)
		}
	}
}

func TestAnonymousComesInOnlyByName(t *testing.T) {
	a, err := edge.NewAuthenticator(edge.AuthConfig{AllowAnonymous: true}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := a.Login("anyone", []byte("x"), nil); id != "" || err != nil {
		t.Errorf("a name that nothing checks became an identity: %q, %v", id, err)
	}
	if a, err = edge.NewAuthenticator(edge.AuthConfig{}, time.Now); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Login("", nil, nil); code(err) != packet.NotAuthorized {
		t.Errorf("anonymous without being allowed: %v", err)
	}
}

func TestAPasswordFileWithAMistakeIsRefusedWithItsLine(t *testing.T) {
	for name, body := range map[string]string{"plain password": "a:secret\n", "no colon": "abc\n", "twice": "a:" + hash(t, "x") + "\na:" + hash(t, "y") + "\n"} {
		file := filepath.Join(t.TempDir(), "p")
		os.WriteFile(file, []byte(body), 0o600)
		if _, err := edge.NewAuthenticator(edge.AuthConfig{PasswordFile: file}, time.Now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
