package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

const defaultURL = "http://127.0.0.1:8080"

// client reads the HTTP API that hubs and nodes share.
type client struct {
	base      string
	tokenFile string
	caFile    string
	certFile  string
	keyFile   string

	http *http.Client // made at first use
}

func (c *client) flags(f *pflag.FlagSet) {
	base := os.Getenv("TAILRACE_URL")
	if base == "" {
		base = defaultURL
	}
	f.StringVar(&c.base, "url", base, "HTTP address of a hub, or of a node on site (TAILRACE_URL)")
	f.StringVar(&c.tokenFile, "token-file", os.Getenv("TAILRACE_TOKEN_FILE"), "file with the bearer token, where one is required")
	f.StringVar(&c.caFile, "ca", "", "CA certificate that signed the server's, for https")
	f.StringVar(&c.certFile, "cert", "", "client certificate, for https")
	f.StringVar(&c.keyFile, "key-file", "", "key of the client certificate")
}

// timeArg is a time as the API takes it: what is given as a span back from now becomes
// ms since 1970, everything else is left to the server.
func timeArg(s string, now time.Time) string {
	if d, err := time.ParseDuration(s); err == nil {
		return strconv.FormatInt(now.Add(-d).UnixMilli(), 10)
	}
	return s
}

// apiError is the body of an answer other than 2xx.
type apiError struct {
	Status  int
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

func (e *apiError) Error() string {
	s := e.Message
	if s == "" {
		s = fmt.Sprintf("the server answered %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

// get asks for path with the query; the caller closes the body. It has no overall
// time limit, since tails and replays run as long as they are wanted.
func (c *client) get(ctx context.Context, path string, q url.Values) (*http.Response, error) {
	return c.do(ctx, http.MethodGet, path, q, nil)
}

// do sends a request; the caller closes the answer's body, which is of a 2xx answer.
func (c *client) do(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Response, error) {
	if c.http == nil {
		t, err := c.transport()
		if err != nil {
			return nil, err
		}
		c.http = &http.Client{Transport: t}
	}
	u := strings.TrimRight(c.base, "/") + path
	if len(q) > 0 {
		u += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, &exitError{exitUsage, fmt.Errorf("address %q: %w", c.base, err)}
	}
	if c.tokenFile != "" {
		b, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(b)))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: is a hub or node running there? (--url)", err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		var body struct {
			Error apiError `json:"error"`
		}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		_ = json.Unmarshal(b, &body) // an answer from something else has no such body
		body.Error.Status = resp.StatusCode
		if body.Error.Code == "unknown_path" {
			body.Error.Hint = "hubs and nodes answer different questions, a node's address is http://127.0.0.1:8081 unless its configuration says otherwise; is " + c.base + " the right one? (--url)"
		}
		return nil, &body.Error
	}
	return resp, nil
}

func (c *client) transport() (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 30 * time.Second
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.caFile != "" {
		pem, err := os.ReadFile(c.caFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", c.caFile)
		}
	}
	if (c.certFile == "") != (c.keyFile == "") {
		return nil, &exitError{exitUsage, errors.New("--cert and --key-file go together")}
	}
	if c.certFile != "" {
		pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	t.TLSClientConfig = cfg
	return t, nil
}

// getJSON decodes a whole answer of bounded size.
func (c *client) getJSON(ctx context.Context, path string, q url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	resp, err := c.get(ctx, path, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<20)).Decode(into); err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
	}
	return nil
}
