package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"regexp"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"tailrace/storage/record"
)

// Config configures a Relay.
type Config struct {
	Brokers []string // host:port; required
	Name    string   // of the fleet: transactional ids <name>-shard-<n>, group <name>-hubs, topics __<name>_…; default tailrace
	Address string   // host:port where nodes reach this hub, told to the nodes of its shards; empty = nobody is sent here
	Shards  int      // fixed for the life of the cluster's data; default 8
	TLS     *tls.Config
	SASL    SASL

	Replication int           // of topics that are made; default 3
	Outage      time.Duration // the longest time a node may be out of reach: no topic may keep records for less
	Topics      []TopicRule   // how topics are made; the first that fits counts, none = refused

	Linger         time.Duration // how long records gather before a transaction; default 50 ms
	TxnBytes       int           // of records in one transaction; default 2 MiB
	MergeRecords   int           // small batches are merged up to so many records; default 1,000
	MergeBytes     int           // and so many bytes; default 512 KiB
	MaxQueuedBytes int64         // of all nodes waiting for commits; default 128 MiB

	// LossRow makes the value of a row of the loss ledger.
	LossRow func(Loss) []byte
	// Acquired is called when a shard is served here, with what PutNote stored of its nodes,
	// by node, and what PutEntry did, by node/key.
	Acquired func(shard int, notes, entries map[string][]byte)
	// Lost is called when a shard that was served here is not any more.
	Lost func(shard int)
	// Stored is called with a batch of a node that was committed; it is the caller's again when
	// Stored returns, which must be soon. nil = nobody asks.
	Stored func(node string, b record.Batch)

	Logger *slog.Logger
	Now    func() time.Time

	wire *wireStats // counts for all clients; nil = nobody asks

	dial func(ctx context.Context, network, addr string) (net.Conn, error) // of a test's long way; nil = plainly

	forget bool // planted by a test: progress is not written
}

// SASL is how the hub logs in at the cluster.
type SASL struct {
	Mechanism string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; empty = not at all
	User      string
	Password  string
}

// TopicRule says how a topic is made when its first record arrives.
type TopicRule struct {
	Match          string        // glob of topic names, as in path.Match
	Partitions     int           // at least the number of shards; default the number of shards
	Retention      time.Duration // 0 = kept for ever
	RetentionBytes int64         // of a partition; 0 = no limit
}

// ProgressTopic is the compacted topic of progress; one partition a shard.
func (c Config) ProgressTopic() string { return "__" + c.Name + "_progress" }

// LossTopic is the loss ledger.
func (c Config) LossTopic() string { return "__" + c.Name + "_loss" }

// DeadTopic takes batches that the cluster refuses.
func (c Config) DeadTopic() string { return "__" + c.Name + "_deadletter" }

const (
	txnTimeout     = 20 * time.Second // a dead owner holds read_committed readers back so long
	produceTimeout = 6 * time.Second  // of one attempt
	giveUp         = 15 * time.Second // of one batch; then the shard is taken over anew
	sessionTimeout = 6 * time.Second  // of the group
)

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, "tailrace")
	c.Shards = cmp.Or(c.Shards, 8)
	c.Replication = cmp.Or(c.Replication, 3)
	c.Linger = cmp.Or(c.Linger, 50*time.Millisecond)
	c.TxnBytes = cmp.Or(c.TxnBytes, 2<<20)
	c.MergeRecords = cmp.Or(c.MergeRecords, 1000)
	c.MergeBytes = cmp.Or(c.MergeBytes, 512<<10)
	c.MaxQueuedBytes = cmp.Or(c.MaxQueuedBytes, 128<<20)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Acquired == nil {
		c.Acquired = func(int, map[string][]byte, map[string][]byte) {}
	}
	if c.Lost == nil {
		c.Lost = func(int) {}
	}
	return c
}

// Validate reports every problem that can be seen without a cluster.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Brokers) == 0 {
		bad("brokers: at least one host:port")
	}
	if !nameOK.MatchString(c.Name) {
		bad("name %q: 1 to 64 of the characters a-z A-Z 0-9 . _ -", c.Name)
	}
	if c.Shards < 1 || c.Shards > 256 {
		bad("shards %d: 1 to 256", c.Shards)
	}
	if c.Replication < 1 || c.Replication > 9 {
		bad("replication %d: 1 to 9", c.Replication)
	}
	if c.Outage <= 0 {
		bad("longest_outage is required: how long a node may be out of reach; no topic may keep records for less")
	}
	if _, err := c.SASL.mechanism(); err != nil {
		bad("sasl: %w", err)
	}
	for i, t := range c.Topics {
		if _, err := path.Match(t.Match, "x"); err != nil || t.Match == "" {
			bad("topics[%d]: match %q is not a pattern", i, t.Match)
		}
		if t.Partitions != 0 && (t.Partitions < c.Shards || t.Partitions > 10000) {
			bad("topics[%d] (%s): partitions %d: at least the number of shards, %d, so that no two shards write to one", i, t.Match, t.Partitions, c.Shards)
		}
		if t.Retention > 0 && t.Retention < c.Outage {
			bad("topics[%d] (%s): retention %s is below longest_outage %s: records of a node that was away would be deleted as they arrive", i, t.Match, t.Retention, c.Outage)
		}
	}
	return errors.Join(errs...)
}

var nameOK = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,64}$`)

func (s SASL) mechanism() (sasl.Mechanism, error) {
	if s.Mechanism == "" {
		if s.User != "" || s.Password != "" {
			return nil, errors.New("a user without a mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
		}
		return nil, nil
	}
	if s.User == "" || s.Password == "" {
		return nil, errors.New("user and password are required")
	}
	switch s.Mechanism {
	case "PLAIN":
		return plain.Auth{User: s.User, Pass: s.Password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: s.User, Pass: s.Password}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: s.User, Pass: s.Password}.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("mechanism %q: use PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", s.Mechanism)
}

// options are the client's for this cluster.
func (c Config) options() ([]kgo.Opt, error) {
	opts := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.ClientID(clientPrefix + c.Address), kgo.MetadataMinAge(100 * time.Millisecond),
		kgo.RequestTimeoutOverhead(produceTimeout), kgo.RetryTimeout(produceTimeout), kgo.DialTimeout(3 * time.Second)}
	if c.wire != nil {
		opts = append(opts, kgo.WithHooks(c.wire))
	}
	if c.dial != nil {
		opts = append(opts, kgo.Dialer(c.dial))
	}
	if c.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(c.TLS))
	}
	m, err := c.SASL.mechanism()
	if err != nil {
		return nil, err
	}
	if m != nil {
		opts = append(opts, kgo.SASL(m))
	}
	return opts, nil
}

// clientPrefix is followed by the hub's address in its client id: that is how hubs know
// where a shard is.
const clientPrefix = "tailrace-hub/"
