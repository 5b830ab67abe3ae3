package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExitStatusTellsWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := write("good.yaml", "data_dir: "+filepath.Join(dir, "d")+"\ntls: {cert: none.crt, key: none.key, ca: none.crt}\n")
	bad := write("bad.yaml", "data_dri: d\n")
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"version", []string{"-version"}, 0, "tailrace-hub dev"},
		{"no file named", nil, 2, "-config FILE is required"},
		{"something more", []string{"-config", good, "now"}, 2, "nothing else"},
		{"unknown flag", []string{"-confg", good}, 2, "not defined"},
		{"help", []string{"-h"}, 0, "-check-config"},
		{"file that is not there", []string{"-config", filepath.Join(dir, "no.yaml")}, 2, "no.yaml"},
		{"checked", []string{"-config", good, "-check-config"}, 0, "ok"},
		{"checked with two dashes", []string{"--config", good, "--check-config"}, 0, "ok"},
		{"misspelt key", []string{"-config", bad, "-check-config"}, 2, "data_dri"},
		{"does not start", []string{"-config", good}, 1, "dev-certs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := run(c.args, &out, &errs); code != c.code {
				t.Errorf("exit status %d, want %d", code, c.code)
			}
			if !strings.Contains(out.String()+errs.String(), c.want) {
				t.Errorf("output %q %q lacks %q", out.String(), errs.String(), c.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "d")); err == nil {
		t.Error("a hub that does not start left a data directory")
	}
}
