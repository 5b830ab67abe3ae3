package auth_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"tailrace/edge/auth"
)

func TestHashesVerify(t *testing.T) {
	h, err := auth.Hash([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	for _, hash := range []string{h, string(b)} {
		if !auth.VerifyHash(hash, []byte("secret")) || auth.VerifyHash(hash, []byte("secre")) || auth.VerifyHash(hash, nil) {
			t.Errorf("%s", hash)
		}
	}
	if h2, _ := auth.Hash([]byte("secret")); h2 == h {
		t.Error("two hashes of one password are equal: no salt")
	}
}

func TestLinesThatCostTooMuchOrSayNothingAreRefused(t *testing.T) {
	h, _ := auth.Hash([]byte("x"))
	for _, line := range []string{"a", "a:", "a:secret", ":" + h, "a:" + h + "\na:" + h, "a:" + strings.Replace(h, "m=9216", "m=99999999", 1), "a:" + strings.Replace(h, "t=4", "t=400", 1),
		"a:" + strings.Replace(h, "p=1", "p=0", 1), "a:" + strings.Replace(h, "v=19", "v=16", 1), "a:" + h[:len(h)-30], "a:$2a$31$" + strings.Repeat("a", 53), "a\x01:" + h, strings.Repeat("a", 2000) + ":" + h} {
		if p, err := auth.ReadPasswords(strings.NewReader(line + "\n")); err == nil {
			t.Errorf("%.60q: accepted, %d users", line, p.Len())
		}
	}
	p, err := auth.ReadPasswords(strings.NewReader(""))
	if err != nil || p.Verify("a", []byte("x"), nil) || p.Verify("", nil, nil) {
		t.Errorf("an empty file lets somebody in: %v", err)
	}
}

func TestPasswordFileIsEditedWhole(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	h, _ := auth.Hash([]byte("x"))
	set := func(name, hash string, wantAdded bool) {
		t.Helper()
		if added, err := auth.SetPassword(file, name, hash); err != nil || added != wantAdded {
			t.Fatalf("%s: added %v, %v", name, added, err)
		}
	}
	set("a", h, true)
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	os.WriteFile(file, []byte("# ours\na:"+h+"\n\nb:"+h), 0o644)
	h2, _ := auth.Hash([]byte("y"))
	set("a", h2, false)
	set("c", h, true)
	if err := auth.DeletePassword(file, "b"); err != nil {
		t.Fatal(err)
	}
	if err := auth.DeletePassword(file, "b"); !errors.Is(err, auth.ErrNoUser) {
		t.Errorf("%v", err)
	}
	got, _ := os.ReadFile(file)
	if want := "# ours\na:" + h2 + "\n\nc:" + h + "\n"; string(got) != want {
		t.Errorf("file is\n%swant\n%s", got, want)
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	for _, name := range []string{"", "a:b", "#a", " a", "a\nb"} {
		if _, err := auth.SetPassword(file, name, h); err == nil {
			t.Errorf("name %q is taken", name)
		}
	}
	os.WriteFile(file, []byte("broken\n"), 0o600)
	if _, err := auth.SetPassword(file, "d", h); err == nil {
		t.Error("a broken file was edited")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".passwd-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestTwoEditorsLoseNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	h, _ := auth.Hash([]byte("x"))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := auth.SetPassword(file, fmt.Sprint("u", i), h); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	p, err := auth.LoadPasswords(file)
	if err != nil || p.Len() != 20 {
		t.Fatalf("%v, %d users", err, p.Len())
	}
}

func TestClientIDsAreBoundToNames(t *testing.T) {
	b, err := auth.NewBinding(auth.DefaultClientIDs)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		identity, id string
		want         bool
	}{{"user:plc-1", "plc-1", true}, {"user:plc-1", "plc-1-a", true}, {"cert:plc-1", "plc-1/x", true}, {"user:plc-1", "plc-10", false}, {"user:plc-1", "plc", false},
		{"user:plc-1", "", false}, {"anonymous", "whatever", true}} {
		if got := b.Allows(c.identity, c.id); got != c.want {
			t.Errorf("%s as %q: %v", c.identity, c.id, got)
		}
	}
	for _, p := range []string{"", "*", "x", "{user}{user}", "{client}", "{user}*x"} {
		if _, err := auth.NewBinding([]string{p}); err == nil {
			t.Errorf("%q accepted", p)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	h, _ := auth.Hash([]byte("secret"))
	for b.Loop() {
		auth.VerifyHash(h, []byte("secret"))
	}
}
