package hub

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"tailrace/uplink/wire"
)

// NodeRule says which topics the nodes of a name may write. The first rule that fits the
// node counts; with rules, a node that none fits may write nothing.
type NodeRule struct {
	Match  string   `yaml:"match"`  // glob of node ids
	Topics []string `yaml:"topics"` // globs of topics; {node} is the node's id
}

// validateNodeRules reports what cannot be.
func validateNodeRules(rules []NodeRule, bad func(string, ...any)) {
	for i, r := range rules {
		if _, err := path.Match(r.Match, "x"); err != nil || r.Match == "" {
			bad("node_rules[%d]: match %q is not a pattern", i, r.Match)
		}
		for _, t := range r.Topics {
			if _, err := path.Match(strings.ReplaceAll(t, "{node}", "n"), "x"); err != nil || t == "" {
				bad("node_rules[%d] (%s): topic %q is not a pattern", i, r.Match, t)
			}
		}
	}
}

// refusal says why a node may not write a topic, or "". The node's own account of its
// clock is always taken; a sketch goes with the topic that it is of.
func (c Config) refusal(node, topic string) string {
	if topic == clockTopic || len(c.NodeRules) == 0 {
		return ""
	}
	if base, ok := wire.SketchOf(topic); ok {
		topic = base
	}
	for _, r := range c.NodeRules {
		if ok, _ := path.Match(r.Match, node); !ok {
			continue
		}
		for _, t := range r.Topics {
			if ok, _ := path.Match(strings.ReplaceAll(t, "{node}", literal(node)), topic); ok {
				return ""
			}
		}
		return fmt.Sprintf("the rule %q of the hub's node_rules does not allow this node the topic", r.Match)
	}
	return "no rule of the hub's node_rules is for this node"
}

// literal escapes what would be a pattern in a name; names of nodes have no such
// characters (validName), so this only guards the rule.
func literal(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// refuse says why nothing of a node's topic is taken, or "". What no session should
// stumble over again and again is found here, before anything is asked for.
func (s sink) refuse(node, topic string) string {
	if why := s.h.cfg.refusal(node, topic); why != "" {
		return why
	}
	if !validName(topic) {
		return "not a name for a topic here"
	}
	if s.h.central.reserved(topic) {
		return "the name is reserved for the hub"
	}
	if !s.h.central.allowed(topic) {
		return "no rule under topics: in the hub's configuration allows the name"
	}
	return ""
}

// RefusedTopic is a topic of a node of which nothing is taken.
type RefusedTopic struct {
	Topic  string `json:"topic"`
	Reason string `json:"reason"`
}

// refusals sets the topics of a node that are refused, and logs what is new. Called
// without the table's mu.
func (s sink) refusals(id string, inv wire.Inventory) map[string]string {
	out := map[string]string{}
	for i := range inv.Partitions {
		topic := inv.Partitions[i].Topic
		if _, done := out[topic]; !done {
			if why := s.refuse(id, topic); why != "" {
				out[topic] = why
			}
		}
	}
	s.h.nodes.mu.Lock()
	n := s.h.nodes.get(id, s.h.cfg.Now())
	before := n.refusedTopics
	n.refusedTopics = out
	s.h.nodes.mu.Unlock()
	for _, topic := range slices.Sorted(maps.Keys(out)) {
		if before[topic] != out[topic] {
			s.h.log.Warn("topic of a node refused", "node", id, "topic", topic, "reason", out[topic])
		}
	}
	return out
}

// mayWrite is the same rule once more, where records enter.
func (s sink) mayWrite(o wire.Origin) error {
	if why := s.h.cfg.refusal(o.Node, o.Topic); why != "" {
		return &TopicError{o.Topic, why}
	}
	return nil
}

func refusedList(m map[string]string) []RefusedTopic {
	var out []RefusedTopic
	for _, topic := range slices.Sorted(maps.Keys(m)) {
		out = append(out, RefusedTopic{topic, m[topic]})
	}
	return out
}
