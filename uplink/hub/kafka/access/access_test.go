package access

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func users(t *testing.T, lines ...string) *Users {
	t.Helper()
	file := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := LoadUsers(file, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func line(t *testing.T, name, password string) string {
	t.Helper()
	l, err := Line(name, password)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestPlain(t *testing.T) {
	u := users(t, "# users", "", line(t, "ann", "secret"))
	for _, c := range []struct {
		msg  string
		user string
	}{
		{"\x00ann\x00secret", "ann"}, {"ann\x00ann\x00secret", "ann"},
		{"\x00ann\x00wrong", ""}, {"\x00bob\x00secret", ""}, {"bob\x00ann\x00secret", ""}, {"\x00ann\x00", ""}, {"ann", ""}, {"", ""}, {"\x00\x00\x00", ""},
	} {
		_, user, err := u.Begin(Plain).Next([]byte(c.msg))
		if user != c.user || (err == nil) != (c.user != "") {
			t.Errorf("%q: user %q, %v", c.msg, user, err)
		}
	}
}

// The exchange of RFC 7677, section 3.
func TestScramOfTheRFC(t *testing.T) {
	salt, _ := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	v, err := derive(ScramSHA256, "pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	s := &Session{mech: ScramSHA256, user: "user", known: true, v: v, step: 1, gs2: "n,,",
		bare:  "n=user,r=rOprNGfwEbeRWgbNEkqO",
		nonce: "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
		first: "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"}
	answer, user, err := s.Next([]byte("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="))
	if err != nil || user != "user" || string(answer) != "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Fatalf("%q %q %v", answer, user, err)
	}
}

func TestScramTellsNothingOfUnknownUsers(t *testing.T) {
	u := users(t, line(t, "ann", "secret"))
	first := func(name string) string {
		b, _, err := u.Begin(ScramSHA512).Next([]byte("n,,n=" + name + ",r=0123456789abcdef"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), ",")
		return rest // without the nonce
	}
	if again := first("bob"); again != first("bob") || first("bob") == first("eve") || len(first("bob")) != len(first("ann")) {
		t.Errorf("%q %q %q", first("bob"), first("eve"), first("ann"))
	}
	// Not even the decoy's own keys let anybody in.
	s := u.Begin(ScramSHA256)
	if _, _, err := s.Next([]byte("n,,n=bob,r=0123456789abcdef")); err != nil {
		t.Fatal(err)
	}
	for _, msg := range []string{"c=biws,r=" + s.nonce + ",p=" + base64.StdEncoding.EncodeToString(make([]byte, 32)), "c=biws,r=other,p=AA==", "", "p="} {
		again := *s
		if _, user, err := again.Next([]byte(msg)); err == nil || user != "" {
			t.Errorf("%q lets %q in", msg, user)
		}
	}
}

func TestUsersFileIsReadAgain(t *testing.T) {
	u := users(t, line(t, "ann", "secret"))
	login := func(name string) bool {
		u.file.mu.Lock()
		u.file.checked = time.Time{}
		u.file.mu.Unlock()
		_, user, _ := u.Begin(Plain).Next([]byte("\x00" + name + "\x00secret"))
		return user == name
	}
	if !login("ann") || login("bob") {
		t.Fatal("before")
	}
	if err := os.WriteFile(u.file.path, []byte(line(t, "bob", "secret")+"\n# changed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if login("ann") || !login("bob") {
		t.Fatal("after")
	}
	failures := 0
	u.file.failed = func(error) { failures++ }
	if err := os.WriteFile(u.file.path, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	once := login("bob")
	if twice := login("bob"); !once || !twice || failures != 1 {
		t.Fatalf("a broken file: %d reports", failures)
	}
}

func TestBadFilesAreRefused(t *testing.T) {
	for _, bad := range []string{"ann", "ann:secret", ":x", line(t, "ann", "a") + "\n" + line(t, "ann", "b"), "anonymous:x",
		"ann:SCRAM-SHA-256$1$AAAAAAAAAAAAAAAA$AA==$AA==", "ann:SCRAM-SHA-256$4096$AAAAAAAAAAAAAAAA$AA==$AA=="} {
		if _, err := readUsers(strings.NewReader(bad)); err == nil || !strings.HasPrefix(err.Error(), "line ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"ann read", "ann reed *", "ann read [", "[ read *", "a b c d"} {
		if _, err := readRules(strings.NewReader(bad)); err == nil || !strings.HasPrefix(err.Error(), "line ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestRules(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rules")
	os.WriteFile(file, []byte(`
reader-*   read          wind.*     # dashboards
reader-*   group         reports-*
scada      read,write    *
admin      all           *
anonymous  describe      public
`), 0o600)
	r, err := LoadRules(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user, op, name string
		want           bool
	}{
		{"reader-1", "read", "wind.a", true}, {"reader-1", "describe", "wind.a", true}, {"reader-1", "write", "wind.a", false},
		{"reader-1", "read", "press", false}, {"reader-1", "group", "reports-7", true}, {"reader-1", "group", "other", false},
		{"reader-1", "describe", "reports-7", false}, {"scada", "write", "x", true}, {"scada", "delete", "x", false}, {"scada", "group", "x", false},
		{"admin", "alter", "x", true}, {"admin", "group", "x", true}, {"", "describe", "public", true}, {"", "read", "public", false}, {"eve", "describe", "public", false},
	} {
		if got := r.Allow(c.user, c.op, c.name); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
