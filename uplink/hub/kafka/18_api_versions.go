package kafka

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ApiVersions (key 18), v0 to v4. Built from table. A version beyond ours is
// answered with a v0 body, error 35 and the full list, from which the client
// chooses again (KIP-511; clients open with v3, v4 or v5). Software name and
// version of the client are ignored; there are no features.
//
// What is advertised matters beyond what is served: librdkafka reads records
// only where Produce from 0 to at least 3, Fetch v4 and FindCoordinator v0 are
// on the list.
var apiVersionsAPI = api{key: 18, name: "ApiVersions", min: 0, max: 4, raw: apiVersions}

func apiVersions(_ context.Context, c *conn, h header, body []byte) error {
	resp := kmsg.NewPtrApiVersionsResponse()
	if h.version < 0 || h.version > c.s.apis[h.key].max {
		resp.ErrorCode = c.fault(h.key, kerr.UnsupportedVersion)
		h.version = 0
	} else {
		req := kmsg.NewPtrApiVersionsRequest()
		req.SetVersion(h.version)
		if err := req.ReadFrom(body); err != nil {
			return err
		}
	}
	resp.SetVersion(h.version)
	for _, a := range c.s.apis {
		k := kmsg.NewApiVersionsResponseApiKey()
		k.ApiKey, k.MinVersion, k.MaxVersion = a.key, a.min, a.max
		resp.ApiKeys = append(resp.ApiKeys, k)
	}
	slices.SortFunc(resp.ApiKeys, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey) - int(b.ApiKey) })
	return c.write(h, resp)
}
