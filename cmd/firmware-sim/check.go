package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tailrace/firmware-sim/ledger"
)

// maxLineBytes bounds one record in NDJSON.
const maxLineBytes = 64 << 20

func checkCommand() *cobra.Command {
	var ledgers []string
	var output string
	cmd := &cobra.Command{
		Use:   "check --ledger FILE [NDJSON...]",
		Short: "Compare what was sent (ledgers) with what a replay shows (NDJSON)",
		Long: `check reads ledgers written by "firmware-sim --ledger" and the records that
"tailrace replay" wrote as NDJSON (files, or standard input), and counts what is
lost, duplicated, out of order, invented or altered. The exit status is 0 only if
nothing is.`,
		Example: `  firmware-sim load --count 1000 --ledger run.ledger
  tailrace replay telemetry | firmware-sim check --ledger run.ledger`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return usagef("--output %q: text or json", output)
			}
			if len(ledgers) == 0 {
				return usagef("--ledger is needed: the file a firmware-sim run wrote")
			}
			book, err := ledger.Load(ledgers...)
			if err != nil {
				return err
			}
			o := book.Observe("replay")
			partitions := map[string]int64{}
			if len(args) == 0 {
				err = observe(o, partitions, cmd.InOrStdin())
			}
			for _, name := range args {
				if err == nil {
					err = observeFile(o, partitions, name)
				}
			}
			if err != nil {
				return err
			}
			r := o.Report()
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d published, %d acked, %d unknown; %d delivered\n%s\n",
					r.Published, r.Acked, r.Unknown, r.Delivered, strings.Join(append([]string{verdict(r)}, r.Examples...), "\n  "))
			}
			if err == nil && !r.OK() {
				err = fmt.Errorf("the replay differs from the ledger: %s", strings.Join(r.Faults(), ", "))
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&ledgers, "ledger", nil, "ledger files of the run")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func verdict(r ledger.Report) string {
	if r.OK() {
		return "nothing lost, duplicated, out of order, invented or altered"
	}
	return strings.Join(r.Faults(), ", ")
}

func observeFile(o *ledger.Observer, partitions map[string]int64, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := observe(o, partitions, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// observe shows every record of an NDJSON stream to the observer.
func observe(o *ledger.Observer, partitions map[string]int64, r io.Reader) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxLineBytes)
	for n := 1; in.Scan(); n++ {
		if len(in.Bytes()) == 0 {
			continue
		}
		var row struct {
			Topic     string          `json:"topic"`
			Partition int             `json:"partition"`
			Offset    *int64          `json:"offset"`
			Value     json.RawMessage `json:"value"`
			Encoding  string          `json:"value_encoding"`
			Headers   []struct {
				Key, Value string
			} `json:"headers"`
		}
		if err := json.Unmarshal(in.Bytes(), &row); err != nil {
			return fmt.Errorf("line %d is not a record: %w", n, err)
		}
		if row.Offset == nil {
			return fmt.Errorf("line %d is not a record: it has no offset", n)
		}
		value, err := raw(row.Value, row.Encoding)
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		stream := row.Topic
		for _, h := range row.Headers {
			if h.Key == "mqtt.topic" {
				stream = h.Value
			}
		}
		key := fmt.Sprintf("%s/%d", row.Topic, row.Partition)
		if _, ok := partitions[key]; !ok {
			partitions[key] = int64(len(partitions))
		}
		o.SeePayload(stream, value, ledger.Position{Partition: partitions[key], Offset: *row.Offset})
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	return nil
}

// raw gives back a value's bytes.
func raw(v json.RawMessage, encoding string) ([]byte, error) {
	switch encoding {
	case "json", "":
		return v, nil
	case "null":
		return nil, nil
	}
	var s string
	if err := json.Unmarshal(v, &s); err != nil {
		return nil, fmt.Errorf("value of encoding %q: %w", encoding, err)
	}
	switch encoding {
	case "text":
		return []byte(s), nil
	case "base64":
		return base64.StdEncoding.DecodeString(s)
	}
	return nil, errors.New("unknown value encoding " + encoding)
}
