package kafka

import (
	"context"
	"errors"
	"math"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// Metadata (key 3), v0 to v12. There is one broker, which leads everything.
// Topics have ids (v10), and may be asked by id; Fetch and Produce stay below
// their id-only versions. Topics the client may not describe are left out of a
// full list and unauthorised when named. Authorized operations are not told
// (KIP-430's default, the minimal int32).
var metadataAPI = api{key: 3, name: "Metadata", min: 0, max: 12, handle: typed(metadata)}

func metadata(_ context.Context, c *conn, req *kmsg.MetadataRequest) (kmsg.Response, error) {
	s := c.s
	resp := kmsg.NewPtrMetadataResponse()
	host, port := c.advertised()
	b := kmsg.NewMetadataResponseBroker()
	b.NodeID, b.Host, b.Port = s.cfg.BrokerID, host, port
	resp.Brokers = append(resp.Brokers, b)
	resp.ClusterID = &s.clusterID
	resp.ControllerID = s.cfg.BrokerID
	resp.AuthorizedOperations = math.MinInt32

	if req.Topics == nil || req.Version == 0 && len(req.Topics) == 0 {
		for _, t := range s.store.Topics() {
			if s.allowed(c, OpDescribe, t.Name()) {
				resp.Topics = append(resp.Topics, s.describeTopic(t))
			}
		}
		return resp, nil
	}
	// Before v4 a client cannot forbid creation; Kafka creates then.
	create := req.Version < 4 || req.AllowAutoTopicCreation
	for _, rt := range req.Topics {
		resp.Topics = append(resp.Topics, c.metadataTopic(rt, create))
	}
	return resp, nil
}

func (c *conn) metadataTopic(rt kmsg.MetadataRequestTopic, create bool) kmsg.MetadataResponseTopic {
	out := kmsg.NewMetadataResponseTopic()
	out.Topic, out.TopicID = rt.Topic, rt.TopicID
	out.AuthorizedOperations = math.MinInt32
	var t *storage.Topic
	if rt.Topic == nil {
		if t = c.s.topicByID(rt.TopicID); t == nil || !c.s.allowed(c, OpDescribe, t.Name()) {
			out.ErrorCode = c.fault(3, kerr.UnknownTopicID)
			return out
		}
		return c.s.describeTopic(t)
	}
	t, e := c.topic(*rt.Topic, OpDescribe, create)
	if e != nil {
		out.ErrorCode = c.fault(3, e)
		return out
	}
	return c.s.describeTopic(t)
}

func (s *Server) topicByID(id [16]byte) *storage.Topic {
	for _, t := range s.store.Topics() {
		if t.ID() == id {
			return t
		}
	}
	return nil
}

func (s *Server) describeTopic(t *storage.Topic) kmsg.MetadataResponseTopic {
	out := kmsg.NewMetadataResponseTopic()
	name := t.Name()
	out.Topic, out.TopicID = &name, t.ID()
	out.AuthorizedOperations = math.MinInt32
	self := []int32{s.cfg.BrokerID}
	for i := range t.Partitions() {
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Partition, p.Leader, p.LeaderEpoch = int32(i), s.cfg.BrokerID, s.leaderEpoch()
		p.Replicas, p.ISR = self, self
		out.Partitions = append(out.Partitions, p)
	}
	return out
}

// topic finds a topic for op, creating it if create and the server's
// configuration allow it.
func (c *conn) topic(name string, op Operation, create bool) (*storage.Topic, *kerr.Error) {
	s := c.s
	if !s.allowed(c, op, name) {
		return nil, kerr.TopicAuthorizationFailed
	}
	t, ok := s.store.Topic(name)
	if ok {
		return t, nil
	}
	if !create || s.cfg.AutoCreate == nil || !s.allowed(c, OpCreate, name) {
		return nil, kerr.UnknownTopicOrPartition
	}
	t, err := s.store.CreateTopic(name, *s.cfg.AutoCreate)
	switch {
	case err == nil:
		s.log.Info("kafka topic created on demand", "topic", name, "client", c.peer.ClientID, "remote", c.peer.Remote)
		return t, nil
	case errors.Is(err, storage.ErrExists):
		if t, ok = s.store.Topic(name); ok {
			return t, nil
		}
		return nil, kerr.UnknownTopicOrPartition
	}
	s.log.Warn("kafka create topic", "topic", name, "err", err)
	return nil, storageError(err)
}

// storageError is the Kafka error of a storage error.
func storageError(err error) *kerr.Error {
	switch {
	case errors.Is(err, storage.ErrOffsetOutOfRange):
		return kerr.OffsetOutOfRange
	case errors.Is(err, storage.ErrUnknownTopic):
		return kerr.UnknownTopicOrPartition
	case errors.Is(err, storage.ErrTooLarge):
		return kerr.MessageTooLarge
	case errors.Is(err, storage.ErrExists):
		return kerr.TopicAlreadyExists
	case errors.Is(err, storage.ErrInvalid):
		return kerr.InvalidTopicException
	}
	// Full, failing or closing: clients retry it after a metadata refresh.
	return kerr.KafkaStorageError
}

// advertised is where the client should connect.
func (c *conn) advertised() (string, int32) {
	if a := c.s.cfg.Advertised; a != "" {
		host, port, _ := splitAddr(a) // checked by validate
		return host, port
	}
	if a, ok := c.nc.LocalAddr().(*net.TCPAddr); ok {
		return a.IP.String(), int32(a.Port)
	}
	return c.nc.LocalAddr().String(), 0
}
