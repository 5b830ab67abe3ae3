package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tailrace/edge/auth"
)

func newPasswd() *cobra.Command {
	c := &cobra.Command{
		Use:   "passwd",
		Short: "Manage the password file of a node",
		Long: `Manage the file that mqtt.auth.password_file names: one line "user:argon2id hash"
each; lines with bcrypt hashes (htpasswd -B) go on working. The file is replaced
as a whole, with mode 0600 and its old owner. A running node sees the change
within seconds, or at once after SIGHUP, and ends the connections of users that
are gone or have another password.

The password is asked for on a terminal, else it is the first line of standard input.`,
		Example: `  tailrace passwd add passwd plc-7
  pwgen 20 1 | tee /dev/stderr | tailrace passwd add passwd plc-8
  tailrace passwd list passwd
  tailrace passwd delete passwd plc-7`,
	}
	c.AddCommand(
		&cobra.Command{
			Use: "add FILE USER", Aliases: []string{"set"}, Short: "Add a user or change its password", Args: cobra.ExactArgs(2),
			RunE: func(c *cobra.Command, args []string) error {
				if err := auth.CheckName(args[1]); err != nil {
					return &exitError{exitUsage, err}
				}
				pw, err := askPassword(c.InOrStdin(), c.ErrOrStderr(), true)
				if err != nil {
					return err
				}
				hash, err := auth.Hash(pw)
				if err != nil {
					return err
				}
				before, _ := os.Stat(args[0])
				added, err := auth.SetPassword(args[0], args[1], hash)
				if err != nil {
					return err
				}
				what := "changed"
				if added {
					what = "added"
				}
				fmt.Fprintf(c.OutOrStdout(), "%s %s\n", what, args[1])
				if before != nil && before.Mode().Perm()&0o077 != 0 {
					fmt.Fprintf(c.ErrOrStderr(), "note: the mode of the file was %v and is 0600 now; the node must run as its owner\n", before.Mode().Perm())
				}
				if strings.ContainsAny(args[1], "+#/") {
					fmt.Fprintln(c.ErrOrStderr(), "note: rules with {user} never match a name with +, # or /")
				}
				return nil
			},
		},
		&cobra.Command{
			Use: "delete FILE USER", Short: "Delete a user", Args: cobra.ExactArgs(2),
			RunE: func(c *cobra.Command, args []string) error {
				if err := auth.DeletePassword(args[0], args[1]); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "deleted %s\n", args[1])
				return nil
			},
		},
		&cobra.Command{
			Use: "verify FILE USER", Short: "Check a password; exit status 1 if it is wrong", Args: cobra.ExactArgs(2),
			RunE: func(c *cobra.Command, args []string) error {
				p, err := auth.LoadPasswords(args[0])
				if err != nil {
					return err
				}
				pw, err := askPassword(c.InOrStdin(), c.ErrOrStderr(), false)
				if err != nil {
					return err
				}
				if !p.Verify(args[1], pw, nil) {
					return &exitError{exitFailed, errors.New("unknown user or wrong password")}
				}
				fmt.Fprintln(c.OutOrStdout(), "password is right")
				return nil
			},
		},
		&cobra.Command{
			Use: "list FILE", Short: "List the users", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				p, err := auth.LoadPasswords(args[0])
				if err != nil {
					return err
				}
				for _, n := range p.Names() {
					fmt.Fprintln(c.OutOrStdout(), n)
				}
				return nil
			},
		},
	)
	return c
}

// askPassword reads without echo from a terminal (twice when it is new), else the first line.
func askPassword(in io.Reader, prompt io.Writer, isNew bool) ([]byte, error) {
	r := bufio.NewReaderSize(in, auth.MaxPasswordBytes+2)
	line := func(ask string) ([]byte, error) {
		f, ok := in.(*os.File)
		restore := func() {}
		if ok && isTerminalFile(f) {
			fmt.Fprint(prompt, ask)
			restore = echoOff(f)
		}
		b, err := r.ReadSlice('\n')
		restore()
		if ok && isTerminalFile(f) {
			fmt.Fprintln(prompt)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, fmt.Errorf("password: more than %d bytes", auth.MaxPasswordBytes)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read password: %w", err)
		}
		b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
		if len(b) == 0 {
			return nil, errors.New("password is empty")
		}
		return bytes.Clone(b), nil
	}
	pw, err := line("Password: ")
	if f, ok := in.(*os.File); err != nil || !isNew || !ok || !isTerminalFile(f) {
		return pw, err
	}
	again, err := line("Again: ")
	if err == nil && !bytes.Equal(pw, again) {
		err = errors.New("the two passwords differ")
	}
	return pw, err
}

func isTerminalFile(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

func newACL() *cobra.Command {
	c := &cobra.Command{Use: "acl", Short: "Try the rules of access of a node"}
	var user, cert, client string
	test := &cobra.Command{
		Use: "test FILE publish|subscribe|will TOPIC", Short: "Show what a rules file decides; exit status 1 if it denies", Args: cobra.ExactArgs(3),
		Example: `  tailrace acl test acl publish site/plc-7/t --user plc-7
  tailrace acl test acl subscribe '#' --cert dashboard --client dashboard-1`,
		RunE: func(c *cobra.Command, args []string) error {
			rules, err := auth.LoadRules(args[0])
			if err != nil {
				return err
			}
			action, err := auth.ParseAction(args[1])
			if err != nil {
				return &exitError{exitUsage, err}
			}
			s := auth.Subject{Identity: auth.Anonymous, Client: client}
			switch {
			case user != "" && cert != "":
				return &exitError{exitUsage, errors.New("--user or --cert, not both")}
			case user != "":
				s.Identity = auth.UserID(user)
			case cert != "":
				s.Identity = auth.CertID(cert)
			}
			if s.Client == "" {
				s.Client = auth.Name(s.Identity)
			}
			if rules.Refused(s.Identity) {
				return &exitError{exitFailed, fmt.Errorf("%s may not connect: a rule refuses it", s.Identity)}
			}
			v := rules.Decide(s, action, args[2])
			why := "no rule allows it"
			if v.Line > 0 {
				why = fmt.Sprintf("line %d: %s", v.Line, v.Rule)
			}
			if !v.Allowed {
				return &exitError{exitFailed, fmt.Errorf("denied (%s)", why)}
			}
			fmt.Fprintf(c.OutOrStdout(), "allowed (%s)\n", why)
			return nil
		},
	}
	test.Flags().StringVar(&user, "user", "", "user `name`, as logged in with a password")
	test.Flags().StringVar(&cert, "cert", "", "`name` in a client certificate; neither: anonymous")
	test.Flags().StringVar(&client, "client", "", "client `id`; default: the name")
	c.AddCommand(test)
	return c
}
