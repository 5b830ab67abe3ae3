package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"tailrace/edge"
	"tailrace/storage/storehttp"
)

// clockTopic is where nodes say by how much their times were wrong.
const clockTopic = "__tailrace_clock"

// corrections are the rows of one topic, by node.
type corrections map[string][]edge.ClockRow

func loadCorrections(ctx context.Context, api *client, topic string) (corrections, error) {
	c := corrections{}
	resp, err := api.get(ctx, "/api/v1/topics/"+clockTopic+"/records", url.Values{"limit": {"0"}})
	var none *apiError
	if errors.As(err, &none) && none.Status == http.StatusNotFound {
		return c, nil // no clock was ever wrong
	}
	if err != nil {
		return nil, fmt.Errorf("read the corrections of times: %w", err)
	}
	defer resp.Body.Close()
	return c, lines(resp.Body, func(line []byte) error {
		if e := streamError(line); e != nil {
			return e
		}
		var r struct {
			Value edge.ClockRow `json:"value"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			return fmt.Errorf("topic %s holds something else than corrections: %w", clockTopic, err)
		}
		if r.Value.Topic == topic {
			c[r.Value.Node] = append(c[r.Value.Node], r.Value)
		}
		return nil
	})
}

// apply returns the line with the true time in "timestamp" and "time" and what is stored
// in "stored_timestamp", or, where it is only known that the time is wrong, with
// "time_trusted":false. A record whose time came from its payload is left alone.
func (c corrections) apply(r *row, line []byte) ([]byte, error) {
	for _, x := range c[r.Origin.Node] {
		if r.Origin.Offset < x.From || r.Origin.Offset >= x.To || r.Origin.Epoch == "" || !strings.HasPrefix(x.Epoch, r.Origin.Epoch) {
			continue
		}
		for _, h := range r.Headers {
			if h.Key == "event.time.ns" {
				return line, nil
			}
		}
		if x.Unknown {
			return append(line[:len(line)-1:len(line)-1], `,"time_trusted":false}`...), nil
		}
		at := r.Timestamp + x.DeltaMS
		head := fmt.Appendf(nil, `"timestamp":%d,"time":"%s"`, r.Timestamp, storehttp.FormatTime(r.Timestamp))
		fixed := fmt.Sprintf(`"timestamp":%d,"time":"%s","stored_timestamp":%d`, at, storehttp.FormatTime(at), r.Timestamp)
		i := bytes.Index(line, head)
		if i < 0 {
			return nil, fmt.Errorf("%s/%d offset %d: the server writes times in a way this program does not know", r.Topic, r.Partition, r.Offset)
		}
		return append(append(append([]byte(nil), line[:i]...), fixed...), line[i+len(head):]...), nil
	}
	return line, nil
}
