package access

import (
	"strings"
	"testing"
)

// Whatever a stranger sends, nobody gets in and nothing breaks.
func FuzzLogin(f *testing.F) {
	f.Add(uint8(0), "\x00ann\x00secret", "")
	f.Add(uint8(1), "n,,n=ann,r=fyko+d2lbbFgONRv9qkxdawL", "c=biws,r=fyko,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	f.Add(uint8(2), "y,a=ann,n=ann,r=12345678,ext=1", "c=,r=,p=")
	f.Add(uint8(1), "p=tls-unique,,n=ann,r=12345678", ",p=,p=")
	t := table{"ann": {}}
	for _, mech := range []string{ScramSHA256, ScramSHA512} {
		v, err := derive(mech, "not guessed by a fuzzer: 6f1c9b", []byte("0123456789abcdef"), minIterations)
		if err != nil {
			f.Fatal(err)
		}
		t["ann"][mech] = v
	}
	u := &Users{file: &watched[table]{value: t, path: "/nowhere"}, work: make(chan struct{}, 1)}
	f.Fuzz(func(t *testing.T, mech uint8, first, second string) {
		s := u.Begin(Mechanisms()[int(mech)%3])
		for _, msg := range []string{first, second, second} {
			if _, user, err := s.Next([]byte(msg)); user != "" {
				t.Fatalf("%q lets %q in", msg, user)
			} else if err != nil {
				return
			}
		}
	})
}

func FuzzFiles(f *testing.F) {
	l, err := Line("ann", "secret")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(l)
	f.Add("reader-* read,group wind.* # comment\n")
	f.Fuzz(func(t *testing.T, text string) {
		if us, err := readUsers(strings.NewReader(text)); err == nil {
			for name, vs := range us {
				if validName(name) != nil || len(vs) == 0 {
					t.Fatalf("user %q with %d verifiers", name, len(vs))
				}
			}
		}
		if rs, err := readRules(strings.NewReader(text)); err == nil {
			(&Rules{&watched[[]rule]{value: rs, path: "/nowhere"}}).Allow("reader-1", "read", "wind.a")
		}
	})
}
