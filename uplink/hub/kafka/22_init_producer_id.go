package kafka

import (
	"context"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// InitProducerId (key 22), v0 to v4. Every asker gets a new id with epoch 0,
// also one that names an id it had, as Kafka does for producers that are not
// transactional; ids are never given out twice. A transactional id is refused
// with error 53, which clients take as final.
var initProducerIDAPI = api{key: 22, name: "InitProducerId", min: 0, max: 4, handle: typed(initProducerID)}

// noTransactions is what whoever asks for a transaction is told.
const noTransactions = "this hub keeps records on one machine and has no transactions: remove transactional.id (idempotent produce is exactly once per partition), or use a cluster"

func initProducerID(ctx context.Context, c *conn, req *kmsg.InitProducerIDRequest) (kmsg.Response, error) {
	resp := kmsg.NewPtrInitProducerIDResponse()
	resp.ProducerID, resp.ProducerEpoch = -1, -1
	if req.TransactionalID != nil {
		resp.ErrorCode = c.fault(22, kerr.TransactionalIDAuthorizationFailed)
		return resp, nil
	}
	if c.s.cfg.ReadOnly {
		resp.ErrorCode = c.fault(22, kerr.ClusterAuthorizationFailed)
		return resp, nil
	}
	id, err := c.s.producers.newID(ctx)
	if err != nil {
		c.s.log.Error("kafka producer id", "err", err)
		resp.ErrorCode = c.fault(22, kerr.CoordinatorNotAvailable)
		return resp, nil
	}
	resp.ProducerID, resp.ProducerEpoch = id, 0
	return resp, nil
}
