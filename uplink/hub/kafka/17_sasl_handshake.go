package kafka

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/uplink/hub/kafka/access"
)

// SaslHandshake (key 17), advertised v0 to v1, accepted v1. After v0 a client
// sends bare SASL messages without a request around them; clients have not
// needed that since 2018. v0 is advertised because librdkafka tests for it.
var saslHandshakeAPI = api{key: 17, name: "SaslHandshake", min: 0, max: 1, accept: 1, handle: typed(saslHandshake)}

func saslHandshake(_ context.Context, c *conn, req *kmsg.SASLHandshakeRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrSASLHandshakeResponse()
	resp.SupportedMechanisms = []string{}
	switch {
	case c.s.cfg.Users == nil || c.authenticated:
		resp.ErrorCode = c.fault(17, kerr.IllegalSaslState)
	case req.Version < c.s.apis[17].accept:
		resp.ErrorCode = c.fault(17, kerr.UnsupportedVersion)
	default:
		resp.SupportedMechanisms = access.Mechanisms()
		if !slices.Contains(resp.SupportedMechanisms, req.Mechanism) {
			resp.ErrorCode = c.fault(17, kerr.UnsupportedSaslMechanism)
			break
		}
		c.sasl = c.s.cfg.Users.Begin(req.Mechanism)
	}
	return resp, nil
}
