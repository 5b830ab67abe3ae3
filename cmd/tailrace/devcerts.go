package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"tailrace/uplink/pki"
)

// devCertDays is how long development certificates last.
const devCertDays = 825

func newDevCerts() *cobra.Command {
	var (
		dir   string
		nodes []string
		hosts []string
	)
	c := &cobra.Command{
		Use:   "dev-certs",
		Short: "Make a CA and certificates for a hub and some nodes",
		Long: `Makes a certificate authority and certificates for one hub and some nodes, enough to
run the example files under deploy/ on one machine. An existing CA in the directory is
used again, and existing certificates are left as they are, so adding a node later is
the same command with its name.

These are for development: the CA's key lies beside the certificates, readable by you only.`,
		Example: `  tailrace dev-certs
  tailrace dev-certs --dir certs --nodes node-1,node-2 --hosts hub.example.org,192.0.2.7`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			made, err := writeDevCerts(dir, nodes, hosts, time.Now())
			for _, m := range made {
				fmt.Fprintln(c.OutOrStdout(), "wrote", m)
			}
			if err == nil && len(made) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "everything is there already in", dir)
			}
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "certs", "directory to write to")
	c.Flags().StringSliceVar(&nodes, "nodes", []string{"node-1", "node-2"}, "node ids")
	c.Flags().StringSliceVar(&hosts, "hosts", nil, "further names and addresses of the hub, beside localhost")
	return c
}

// writeDevCerts fills dir with ca, hub and node certificates and returns what it
// wrote. Keys are 0600 in a 0700 directory.
func writeDevCerts(dir string, nodes, hosts []string, now time.Time) ([]string, error) {
	for _, n := range nodes { // before anything is written
		if err := pki.ValidName(n); err != nil {
			return nil, &exitError{exitUsage, err}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	valid := devCertDays * 24 * time.Hour
	var made []string
	save := func(name string, p pki.Pair) error {
		for _, f := range []struct {
			name string
			data []byte
			mode fs.FileMode
		}{{name + ".key", p.Key, 0o600}, {name + ".crt", p.Cert, 0o644}} {
			path := filepath.Join(dir, f.name)
			if err := os.WriteFile(path, f.data, f.mode); err != nil {
				return err
			}
			made = append(made, path)
		}
		return nil
	}
	ca, err := loadCA(dir)
	if errors.Is(err, fs.ErrNotExist) {
		var pair pki.Pair
		if ca, pair, err = pki.NewCA(rand.Reader, "Tailrace development CA", now, valid); err == nil {
			err = save("ca", pair)
		}
	}
	if err != nil {
		return made, err
	}
	local := append([]string{"localhost", "127.0.0.1", "::1"}, hosts...)
	want := []struct {
		role  pki.Role
		name  string
		hosts []string
	}{{pki.RoleHub, "hub", local}}
	for _, n := range nodes {
		want = append(want, struct {
			role  pki.Role
			name  string
			hosts []string
		}{pki.RoleNode, n, local[:3]})
	}
	for _, w := range want {
		if _, err := os.Stat(filepath.Join(dir, w.name+".crt")); err == nil {
			continue
		}
		p, err := ca.Issue(rand.Reader, w.role, w.name, w.hosts, now, valid)
		if err != nil {
			return made, err
		}
		if err := save(w.name, p); err != nil {
			return made, err
		}
	}
	return made, nil
}

func loadCA(dir string) (*pki.CA, error) {
	crt, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("%w: there is a CA certificate without its key; name another --dir", err)
	}
	return pki.LoadCA(pki.Pair{Cert: crt, Key: key})
}
