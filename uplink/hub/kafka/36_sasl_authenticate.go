package kafka

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// SaslAuthenticate (key 36), v0 to v2: PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
// Until it has succeeded nothing else is served but ApiVersions and
// SaslHandshake. A failure is answered and ends the connection. A login lasts as
// long as its connection (KIP-368 lifetime 0).
var saslAuthenticateAPI = api{key: 36, name: "SaslAuthenticate", min: 0, max: 2, handle: typed(saslAuthenticate)}

func saslAuthenticate(_ context.Context, c *conn, req *kmsg.SASLAuthenticateRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrSASLAuthenticateResponse()
	resp.SASLAuthBytes = []byte{}
	if c.sasl == nil {
		resp.ErrorCode = c.fault(36, kerr.IllegalSaslState)
		return resp, nil
	}
	answer, user, err := c.sasl.Next(req.SASLAuthBytes)
	if err != nil {
		c.s.stats.denied.Inc()
		c.s.log.Warn("kafka login refused", "remote", c.peer.Remote, "client", c.peer.ClientID, "err", err)
		c.sasl = nil
		c.ending = fmt.Errorf("login refused: %w", err)
		resp.ErrorCode = c.fault(36, kerr.SaslAuthenticationFailed)
		resp.ErrorMessage = kmsg.StringPtr(err.Error())
		return resp, nil
	}
	resp.SASLAuthBytes = append(resp.SASLAuthBytes, answer...)
	if user != "" {
		c.sasl, c.authenticated, c.peer.User = nil, true, user
	}
	return resp, nil
}
