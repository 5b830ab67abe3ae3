package edge_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
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
	if changed, err := a.Reload(false); !changed || err != nil {
		t.Fatalf("not seen: %v", err)
	}
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
	if id, err := a.Login("anyone", []byte("x"), nil); id != "anonymous" || err != nil {
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

// An empty file lets nobody in; a broken one neither, after a moment in which an editor
// may still be writing it, and at once when the reload was asked for.
func TestABrokenFileLeavesNobodyAnyRight(t *testing.T) {
	dir := t.TempDir()
	passwd, acl := filepath.Join(dir, "passwd"), filepath.Join(dir, "acl")
	write := func(file, s string) {
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good := "t01:" + hash(t, "secret") + "\n"
	write(passwd, good)
	write(acl, "allow * all #\n")
	now := time.Now()
	a, err := edge.NewAuthenticator(edge.AuthConfig{PasswordFile: passwd, ACLFile: acl}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	login := func(want packet.Code) {
		t.Helper()
		if _, err := a.Login("t01", []byte("secret"), nil); code(err) != want {
			t.Fatalf("%v, want code 0x%02X", err, byte(want))
		}
	}
	reload := func(force, changed, fails bool) {
		t.Helper()
		if c, err := a.Reload(force); c != changed || (err != nil) != fails {
			t.Fatalf("reload(%v): changed %v, %v", force, c, err)
		}
	}
	login(0)
	reload(false, false, false)
	for _, file := range []string{passwd, acl} {
		body, _ := os.ReadFile(file)
		write(file, "nonsense\n")
		reload(false, false, true)
		login(0)
		now = now.Add(time.Minute)
		reload(false, true, true)
		login(packet.ServerUnavailable)
		reload(false, false, false) // said once
		write(file, string(body))
		reload(false, true, false)
		login(0)
		write(file, "nonsense\n")
		reload(true, true, true)
		login(packet.ServerUnavailable)
		os.Remove(file)
		reload(true, true, true)
		login(packet.ServerUnavailable)
		write(file, string(body))
		reload(false, true, false)
	}
	write(passwd, "")
	reload(true, true, false)
	login(packet.BadUserOrPassword)
	write(passwd, good)
	write(acl, "# nothing\n")
	reload(true, true, false)
	login(0)
	if a.May("user:t01", "t01", "t") {
		t.Error("an empty acl file allows something")
	}
}

// What limits bad logins comes before the hash, per address, and does not touch others.
func TestFailedLoginsOfAnAddressEndBeforeTheHash(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(file, []byte("good:"+hash(t, "secret")+"\nother:"+hash(t, "secret")+"\n"), 0o600)
	now := time.Now()
	a, err := edge.NewAuthenticator(edge.AuthConfig{PasswordFile: file, FailedLogins: edge.FailedLogins{Burst: 3, PerMinute: 60}}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	bad, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	if _, err := a.LoginFrom("good", []byte("secret"), nil, bad); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := a.LoginFrom("good", []byte("wrong"), nil, bad); code(err) != packet.BadUserOrPassword {
			t.Fatal(err)
		}
	}
	hashes := a.Hashes()
	for range 100 {
		if _, err := a.LoginFrom("other", []byte("secret"), nil, bad); code(err) != packet.ConnectionRateTooHigh {
			t.Fatalf("the fourth: %v", err)
		}
	}
	if _, err := a.LoginFrom("good", []byte("secret"), nil, bad); err != nil {
		t.Errorf("a login that was accepted before pays for its neighbour: %v", err)
	}
	if n := a.Hashes(); n != hashes {
		t.Errorf("%d hashes for logins beyond the limit", n-hashes)
	}
	if _, err := a.LoginFrom("other", []byte("secret"), nil, other); err != nil {
		t.Errorf("another address: %v", err)
	}
	now = now.Add(time.Second)
	if _, err := a.LoginFrom("other", []byte("secret"), nil, bad); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

func TestFewHashesRunAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	os.WriteFile(file, []byte("good:"+hash(t, "secret")+"\n"), 0o600)
	a, err := edge.NewAuthenticator(edge.AuthConfig{PasswordFile: file, FailedLogins: edge.FailedLogins{Burst: 1000, PerMinute: 1000}}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { a.Login(fmt.Sprint("u", i), []byte("x"), nil) })
	}
	wg.Wait()
	if n := a.HashesAtOnce(); n > 2 || n < 1 {
		t.Errorf("%d at once", n)
	}
}
