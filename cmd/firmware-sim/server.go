package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"tailrace/firmware-sim/rawload"
)

// serverFlags say where the server is and who we are.
type serverFlags struct {
	url, ca, cert, key string
	user, passwordFile string
	output             string
	ledger             string
}

func (s *serverFlags) add(f *pflag.FlagSet) {
	f.StringVarP(&s.url, "server", "s", "mqtt://127.0.0.1:1883", "MQTT server: mqtt://host[:port] or mqtts://host[:port]")
	f.StringVar(&s.ca, "ca", "", "file with the CA certificates to trust for mqtts (default: the system's)")
	f.StringVar(&s.cert, "cert", "", "file with the client certificate for mqtts")
	f.StringVar(&s.key, "key", "", "file with the key of --cert")
	f.StringVar(&s.user, "user", "", "user name")
	f.StringVar(&s.passwordFile, "password-file", "", "file with the password")
	f.StringVarP(&s.output, "output", "o", "text", "how to print the result: text or json")
	f.StringVar(&s.ledger, "ledger", "", "write intents and acknowledgements to this new file, for an independent check")
}

// dialer checks the flags; it does not connect.
func (s *serverFlags) dialer() (func(context.Context) (net.Conn, error), string, error) {
	if s.output != "text" && s.output != "json" {
		return nil, "", usagef("--output %q: text or json", s.output)
	}
	raw := s.url
	if !strings.Contains(raw, "://") {
		raw = "mqtt://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || (u.Path != "" && u.Path != "/") {
		return nil, "", usagef("--server %q: want mqtt://host[:port] or mqtts://host[:port]", s.url)
	}
	var password string
	if s.passwordFile != "" {
		b, err := os.ReadFile(s.passwordFile)
		if err != nil {
			return nil, "", fmt.Errorf("--password-file: %w", err)
		}
		password = strings.TrimRight(string(b), "\r\n")
	}
	port := u.Port()
	switch u.Scheme {
	case "mqtt", "tcp":
		if port == "" {
			port = "1883"
		}
		if s.ca != "" || s.cert != "" || s.key != "" {
			return nil, "", usagef("--ca, --cert and --key need an mqtts:// server")
		}
		return rawload.DialTCP(net.JoinHostPort(u.Hostname(), port), nil), password, nil
	case "mqtts", "ssl", "tls":
		if port == "" {
			port = "8883"
		}
		conf := &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
		if s.ca != "" {
			pem, err := os.ReadFile(s.ca)
			if err != nil {
				return nil, "", fmt.Errorf("--ca: %w", err)
			}
			conf.RootCAs = x509.NewCertPool()
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return nil, "", fmt.Errorf("--ca %s: no certificate in it", s.ca)
			}
		}
		if (s.cert == "") != (s.key == "") {
			return nil, "", usagef("--cert and --key go together")
		}
		if s.cert != "" {
			pair, err := tls.LoadX509KeyPair(s.cert, s.key)
			if err != nil {
				return nil, "", fmt.Errorf("--cert, --key: %w", err)
			}
			conf.Certificates = []tls.Certificate{pair}
		}
		return rawload.DialTCP(net.JoinHostPort(u.Hostname(), port), conf), password, nil
	}
	return nil, "", usagef("--server %q: scheme %q is not mqtt or mqtts", s.url, u.Scheme)
}

// reachable connects once, so that a wrong address is an error at once and not a
// silent fleet that tries for ever.
func reachable(ctx context.Context, server string, dial func(context.Context) (net.Conn, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := dial(ctx)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("no MQTT server at %s: %w (is it running? --wait keeps trying)", server, err)
	}
	return c.Close()
}

// printJSON prints one line of JSON.
func printJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// progress shows lines of what(): in place on a terminal once a second, else
// every ten seconds. The returned function ends it and clears the line.
func progress(w *os.File, what func() string) (stop func()) {
	info, err := w.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	every := 10 * time.Second
	if terminal {
		every = time.Second
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-quit:
				if terminal {
					fmt.Fprint(w, "\r\x1b[K")
				}
				return
			case <-t.C:
				if terminal {
					fmt.Fprintf(w, "\r\x1b[K%s", what())
				} else {
					fmt.Fprintln(w, what())
				}
			}
		}
	}()
	return func() { close(quit); <-ended }
}
