package hub

import (
	"fmt"

	"tailrace/storage"
	"tailrace/uplink/hub/kafka"
	"tailrace/uplink/hub/kafka/access"
)

// newKafka makes the Kafka protocol's server on the same store. Topics that a
// client makes, or produces to, follow the rule for any name ("*"); without
// such a rule a client makes topics with CreateTopics only.
func (h *Hub) newKafka() (*kafka.Server, error) {
	c := kafka.Config{Store: h.store, Advertised: h.cfg.Kafka.Advertised, Logger: h.cfg.Logger.With("subsystem", "kafka"), Now: h.cfg.Now, Metrics: h.metrics.set, Reserved: reservedTopic,
		TopicDefaults: storage.TopicConfig{Partitions: 4, Class: h.cfg.Classes[0].Name, RetentionByArrival: true}}
	for _, r := range h.cfg.rules() {
		if r.Match == "*" {
			c.TopicDefaults = r.config()
			c.AutoCreate = &c.TopicDefaults
			break
		}
	}
	failed := func(err error) {
		c.Logger.Error("file cannot be read again, what it said before stays in force", "err", err)
	}
	var err error
	if f := h.cfg.Kafka.UsersFile; f != "" {
		if c.Users, err = access.LoadUsers(f, failed); err != nil {
			return nil, fmt.Errorf("kafka.users_file: %w", err)
		}
	}
	if f := h.cfg.Kafka.RulesFile; f != "" {
		rules, err := access.LoadRules(f, failed)
		if err != nil {
			return nil, fmt.Errorf("kafka.rules_file: %w", err)
		}
		c.Authorize = func(p kafka.Peer, op kafka.Operation, name string) bool { return rules.Allow(p.User, string(op), name) }
	}
	s, err := kafka.NewServer(c)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	return s, nil
}
