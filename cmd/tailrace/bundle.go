package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tailrace/uplink/bundle"
)

func newExportBundle(api *client) *cobra.Command {
	var out, from, to string
	var all, quiet bool
	c := &cobra.Command{
		Use:   "export-bundle [TOPIC...]",
		Short: "Write what a node holds into a signed file, to carry to the hub",
		Long: `Writes records of a node into one file, signed with the node's key, for a site whose link is gone
or too thin: carry it on a USB stick and give it to the hub with import-bundle. What the hub
has already, by link or by another bundle, is not stored twice; what it takes from a bundle the
node does not send again.

Without flags the file holds everything that the hub has not acknowledged, as far as the node
knows. Topics may be patterns (wind.*). A topic that is kept in order enters only where the hub's
part ends: use --from only to reach back further, or for topics on demand.

It asks the node, so --url has to be the node's HTTP address.`,
		Example: `  tailrace export-bundle --url http://127.0.0.1:8081
  tailrace export-bundle --url http://127.0.0.1:8081 'wind.*' -o /media/usb/turbine-7.trbundle
  tailrace export-bundle --url http://127.0.0.1:8081 vibration.raw --from 2026-11-01T00:00:00Z --to 2026-11-02T00:00:00Z`,
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{"topic": args}
			if all {
				if from != "" {
					return &exitError{exitUsage, errors.New("--all and --from exclude each other")}
				}
				q.Set("all", "1")
			}
			for name, v := range map[string]string{"from": from, "to": to} {
				if v != "" {
					q.Set(name, timeArg(v, time.Now()))
				}
			}
			if out == "" {
				out = "tailrace-" + time.Now().UTC().Format("20060102T150405Z") + ".trbundle"
			}
			return exportBundle(c.Context(), api, q, out, quiet, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVarP(&out, "output", "o", "", "file to write (default tailrace-TIME.trbundle here)")
	f.StringVar(&from, "from", "", "from the first record of this time on: RFC 3339, ms since 1970, or a span back such as 24h")
	f.StringVar(&to, "to", "", "up to the first record of this time")
	f.BoolVar(&all, "all", false, "everything the node holds, also what the hub has")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

func exportBundle(ctx context.Context, api *client, q url.Values, out string, quiet bool, stdout, stderr io.Writer) (err error) {
	resp, err := api.get(ctx, "/api/v1/bundle", q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// Under another name until it is whole and on the medium: a stick is pulled early.
	part := out + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	prog := newProgress(stderr, quiet, "bytes")
	defer prog.done()
	n, err := io.Copy(f, counted{resp.Body, prog})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("the bundle is not whole, what there is stays in %s (a hub takes it): %w", part, err)
	}
	if err := os.Rename(part, out); err != nil {
		return err
	}
	prog.done()
	fmt.Fprintf(stdout, "%s: %d bytes; at the hub: tailrace import-bundle %s\n", out, n, out)
	return nil
}

type counted struct {
	r io.Reader
	p *progress
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if n > 0 {
		c.p.add(int64(n))
	}
	return n, err
}

// bundleResult is hub.BundleResult as it comes over the wire.
type bundleResult struct {
	Bundle     string `json:"bundle"`
	Node       string `json:"node"`
	Created    string `json:"created"`
	Complete   bool   `json:"complete"`
	Problem    string `json:"problem"`
	Records    int64  `json:"records"`
	Held       int64  `json:"held"`
	Lost       int64  `json:"lost"`
	Partitions []struct {
		Topic     string `json:"topic"`
		Partition int    `json:"partition"`
		From      int64  `json:"from"`
		To        int64  `json:"to"`
		Records   int64  `json:"records"`
		Held      int64  `json:"held"`
		Lost      int64  `json:"lost"`
		Refused   string `json:"refused"`
	} `json:"partitions"`
}

func newImportBundle(api *client) *cobra.Command {
	var output, nodeCA string
	var check, quiet bool
	c := &cobra.Command{
		Use:   "import-bundle FILE",
		Short: "Give a hub a file that export-bundle wrote",
		Long: `Sends a bundle to a hub, which checks each block's signature against its CA of nodes and stores
what it does not hold. A bundle that was cut off, or damaged on the way, is taken as far as it is good; bring it
again whole and the rest is stored. Exit code 1 when not everything was taken.

--check verifies the file here, against --node-ca, and sends nothing.`,
		Example: `  tailrace import-bundle turbine-7.trbundle
  tailrace import-bundle turbine-7.trbundle --url https://hub.example:8080 --token-file token -o json
  tailrace import-bundle turbine-7.trbundle --check --node-ca ca.pem`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return &exitError{exitUsage, fmt.Errorf("-o %s: use text or json", output)}
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			fi, err := f.Stat()
			if err != nil {
				return err
			}
			prog := newProgress(c.ErrOrStderr(), quiet, "bytes")
			prog.total = fi.Size()
			defer prog.done()
			body := counted{f, prog}
			if check {
				return checkBundle(body, nodeCA, prog, c.OutOrStdout())
			}
			resp, err := api.upload(c.Context(), "/api/v1/bundles", body)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
			if err != nil {
				return err
			}
			prog.done()
			var res bundleResult
			if err := json.Unmarshal(raw, &res); err != nil {
				return fmt.Errorf("read the hub's answer: %w", err)
			}
			if output == "json" {
				_, err = c.OutOrStdout().Write(raw)
			} else {
				err = printBundle(c.OutOrStdout(), res)
			}
			if err == nil && !res.Complete {
				err = fmt.Errorf("bundle of node %s not taken whole: %s", res.Node, res.Problem)
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "text", "text or json")
	f.BoolVar(&check, "check", false, "verify the file here and send nothing")
	f.StringVar(&nodeCA, "node-ca", "", "with --check: the CA certificate of the nodes")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

// upload sends a body of any length; the answer may take as long as it takes to store it.
func (c *client) upload(ctx context.Context, path string, body io.Reader) (*http.Response, error) {
	t, err := c.transport()
	if err != nil {
		return nil, err
	}
	t.ResponseHeaderTimeout = 0
	up := *c
	up.http = &http.Client{Transport: t}
	return up.do(ctx, http.MethodPost, path, nil, body)
}

func printBundle(w io.Writer, res bundleResult) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "TOPIC\tFROM\tTO\tSTORED\tHELD BEFORE\tDECLARED LOST\tREFUSED")
	for _, p := range res.Partitions {
		fmt.Fprintf(tw, "%s/%d\t%d\t%d\t%d\t%d\t%d\t%s\n", p.Topic, p.Partition, p.From, p.To, p.Records, p.Held, p.Lost, p.Refused)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "node %s, exported %s: %d records stored, %d held before, %d declared lost\n", res.Node, res.Created, res.Records, res.Held, res.Lost)
	return err
}

func checkBundle(r io.Reader, caFile string, prog *progress, w io.Writer) error {
	if caFile == "" {
		return &exitError{exitUsage, errors.New("--check needs --node-ca, the CA certificate of the nodes")}
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", caFile)
	}
	br, err := bundle.NewReader(r, bundle.Trust{Roots: pool, Now: time.Now()})
	if err != nil {
		return err
	}
	defer br.Close()
	for err == nil {
		_, err = br.Next()
	}
	prog.done()
	if err != io.EOF {
		return fmt.Errorf("bundle of node %s: %w", br.Header.Node, err)
	}
	h := br.Header
	fmt.Fprintf(w, "sound: node %s, exported %s by %s\n", h.Node, stamp(h.Created.UnixNano/1e6), h.Software)
	for _, p := range h.Parts {
		for _, info := range h.Inventory.Partitions {
			if info.ID == p.Partition {
				fmt.Fprintf(w, "  %s/%d offsets %d to %d\n", info.Topic, info.Partition, p.From, p.To)
			}
		}
	}
	_, err = fmt.Fprintf(w, "%d records, %d bytes of batches, %d offsets declared lost\n", br.Totals.Records, br.Totals.Bytes, br.Totals.Lost)
	return err
}
