package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func command(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetIn(strings.NewReader(stdin))
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestPasswdManagesAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passwd")
	for _, c := range []struct {
		stdin string
		args  []string
		out   string
		fails bool
	}{
		{"secret\n", []string{"add", file, "plc-1"}, "added plc-1\n", false},
		{"other\r\nrest", []string{"add", file, "plc-2"}, "added plc-2\n", false},
		{"", []string{"list", file}, "plc-1\nplc-2\n", false},
		{"secret\n", []string{"verify", file, "plc-1"}, "password is right\n", false},
		{"other", []string{"verify", file, "plc-2"}, "password is right\n", false},
		{"secret\n", []string{"verify", file, "plc-2"}, "", true},
		{"new\n", []string{"add", file, "plc-1"}, "changed plc-1\n", false},
		{"secret\n", []string{"verify", file, "plc-1"}, "", true},
		{"", []string{"delete", file, "plc-1"}, "deleted plc-1\n", false},
		{"", []string{"delete", file, "plc-1"}, "", true},
		{"", []string{"add", file, "plc-3"}, "", true},
		{"x\n", []string{"add", file, "a:b"}, "", true},
		{"", []string{"list", file}, "plc-2\n", false},
	} {
		out, err := command(t, c.stdin, append([]string{"passwd"}, c.args...)...)
		if out != c.out || (err != nil) != c.fails {
			t.Errorf("passwd %q: %q, %v", c.args, out, err)
		}
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestACLTestShowsTheRule(t *testing.T) {
	file := filepath.Join(t.TempDir(), "acl")
	os.WriteFile(file, []byte("# rules\nallow * publish site/{user}/#\nrefuse old\n"), 0o600)
	for _, c := range []struct {
		args    []string
		allowed bool
		says    string
	}{
		{[]string{"publish", "site/a/t", "--user", "a"}, true, "line 2"},
		{[]string{"publish", "site/b/t", "--user", "a"}, false, "no rule"},
		{[]string{"subscribe", "site/a/#", "--cert", "a"}, false, "no rule"},
		{[]string{"publish", "site/old/t", "--user", "old"}, false, "refuses"},
	} {
		out, err := command(t, "", append([]string{"acl", "test", file}, c.args...)...)
		if err != nil {
			out += err.Error()
		}
		if (err == nil) != c.allowed || !strings.Contains(out, c.says) {
			t.Errorf("%q: %q, %v", c.args, out, err)
		}
	}
}
