package hub

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"tailrace/uplink/hub/relay"
)

// StoreConfig says where the records are. Default: in data_dir.
type StoreConfig struct {
	Kafka *ClusterConfig `yaml:"kafka"` // in an Apache Kafka cluster
}

// ClusterConfig is an Apache Kafka cluster, 4.0 or newer, as the central store. Several hubs
// share one: each serves a part of the nodes, and takes over from one that is gone.
type ClusterConfig struct {
	Brokers       []string `yaml:"brokers"`        // host:port; required
	Name          string   `yaml:"name"`           // of the fleet in the cluster: transactional ids, group, system topics; default tailrace
	Address       string   `yaml:"address"`        // host:port where nodes reach this hub; named to nodes that come to another; required
	Shards        int      `yaml:"shards"`         // fixed with the first start; default 8
	Replication   int      `yaml:"replication"`    // of topics that are made; default 3
	LongestOutage Duration `yaml:"longest_outage"` // how long a node may be out of reach; no topic may keep records for less. Required
	Linger        Duration `yaml:"linger"`         // how long records gather before a transaction; default 50ms

	TLS  *ClusterTLS  `yaml:"tls"`  // default none
	SASL *ClusterSASL `yaml:"sasl"` // default none
}

// ClusterTLS is TLS to the brokers.
type ClusterTLS struct {
	CA   string `yaml:"ca"`   // PEM file: who signs the brokers; default the system's
	Cert string `yaml:"cert"` // PEM file: the hub's own certificate, for mutual TLS
	Key  string `yaml:"key"`  // PEM file
}

// ClusterSASL is the login at the brokers.
type ClusterSASL struct {
	Mechanism    string `yaml:"mechanism"` // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
	User         string `yaml:"user"`
	PasswordFile string `yaml:"password_file"` // the first line of it
}

// shards is how many partitions a topic has at least.
func (c Config) shards() int {
	if c.Store.Kafka.Shards > 0 {
		return c.Store.Kafka.Shards
	}
	return 8
}

// relayRules are what the configuration says without a look at any file.
func (c Config) relayRules() relay.Config {
	k := c.Store.Kafka
	r := relay.Config{Brokers: k.Brokers, Name: k.Name, Address: k.Address, Shards: c.shards(), Replication: k.Replication,
		Outage: time.Duration(k.LongestOutage), Linger: time.Duration(k.Linger)}
	if k.SASL != nil {
		r.SASL = relay.SASL{Mechanism: k.SASL.Mechanism, User: k.SASL.User, Password: k.SASL.PasswordFile}
	}
	for _, t := range c.Topics {
		r.Topics = append(r.Topics, relay.TopicRule{Match: t.Match, Partitions: t.Partitions, Retention: time.Duration(t.Retention), RetentionBytes: int64(t.RetentionBytes)})
	}
	return r
}

// relay is the same with what the files hold.
func (c Config) relay() (relay.Config, error) {
	r, k := c.relayRules(), c.Store.Kafka
	if k.SASL != nil {
		b, err := os.ReadFile(k.SASL.PasswordFile)
		if err != nil {
			return r, fmt.Errorf("store.kafka.sasl.password_file: %w", err)
		}
		r.SASL.Password, _, _ = strings.Cut(strings.TrimSpace(string(b)), "\n")
	}
	if t := k.TLS; t != nil {
		r.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if t.CA != "" {
			pool, err := loadPool(t.CA)
			if err != nil {
				return r, fmt.Errorf("store.kafka.tls.ca: %w", err)
			}
			r.TLS.RootCAs = pool
		}
		if t.Cert != "" {
			cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
			if err != nil {
				return r, fmt.Errorf("store.kafka.tls: %w", err)
			}
			r.TLS.Certificates = []tls.Certificate{cert}
		}
	}
	return r, nil
}

// validateStore checks a configuration as it was read, before defaults.
func (c Config) validateStore(bad func(string, ...any)) {
	k := c.Store.Kafka
	if k == nil {
		return
	}
	var many interface{ Unwrap() []error }
	if err := c.withDefaults().relayRules().Validate(); errors.As(err, &many) {
		for _, err := range many.Unwrap() {
			bad("store.kafka: %w", err)
		}
	}
	for i, b := range k.Brokers {
		if err := checkAddr(b); err != nil {
			bad("store.kafka.brokers[%d]: %w", i, err)
		}
	}
	if err := checkAddr(k.Address); err != nil {
		bad("store.kafka.address: %w: where nodes reach this hub", err)
	}
	if t := k.TLS; t != nil && (t.Cert == "") != (t.Key == "") {
		bad("store.kafka.tls: cert and key go together")
	}
	if k.SASL != nil && k.TLS == nil && k.SASL.Mechanism == "PLAIN" {
		for _, b := range k.Brokers {
			if !isLoopback(b) {
				bad("store.kafka.sasl: PLAIN sends the password to %s as it is: configure tls", b)
				break
			}
		}
	}
	if c.Kafka.Listen != "" && c.Kafka.Listen != "off" {
		bad("kafka.listen: with store.kafka consumers read the cluster itself: leave it out")
	}
	if len(c.Classes) > 0 {
		bad("classes: they are of records in data_dir; with store.kafka there are none")
	}
	for i, t := range c.Topics {
		if t.Class != "" {
			bad("topics[%d] (%s): class: with store.kafka there are none", i, t.Match)
		}
		if t.RetentionBy == "arrival" {
			bad("topics[%d] (%s): retention_by: a Kafka cluster deletes by the records' own time", i, t.Match)
		}
	}
}
