package edge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"tailrace/edge/bridge"
)

// BridgeConfig is one broker to take messages from.
type BridgeConfig struct {
	// Name for logs and metrics. Required, unique.
	Name string `yaml:"name"`
	// Brokers: mqtt://host:port or mqtts://host:port; several addresses of one broker or cluster.
	Brokers []string `yaml:"brokers"`
	// ClientID of the session at the broker, and the header "mqtt.client" of its records;
	// default "tailrace-NODE-NAME". Nobody else may use it.
	ClientID string `yaml:"client_id"`
	Username string `yaml:"username"`
	// PasswordFile holds the password in its first line; read at every connect.
	PasswordFile string `yaml:"password_file"`
	// TLS for mqtts: ca (default: the system's), optionally cert and key.
	TLS *ClientTLS `yaml:"tls"`
	// Subscriptions: topic filters, "$share/GROUP/FILTER" allowed. QoS default 1.
	Subscriptions []SubscriptionConfig `yaml:"subscriptions"`
	// SessionExpiry: how long the broker keeps messages while the node is away; default 168h.
	SessionExpiry time.Duration `yaml:"session_expiry"`
	// ReceiveMaximum: messages under way and not yet durable; default 1000.
	ReceiveMaximum int `yaml:"receive_maximum"`
}

// SubscriptionConfig is one subscription at a broker.
type SubscriptionConfig struct {
	Filter string `yaml:"filter"`
	QoS    *int   `yaml:"qos"`
}

func (b BridgeConfig) withDefaults(node string) BridgeConfig {
	b.Subscriptions = slices.Clone(b.Subscriptions)
	def(&b.ClientID, "tailrace-"+node+"-"+b.Name)
	one := 1
	for i := range b.Subscriptions {
		if b.Subscriptions[i].QoS == nil {
			b.Subscriptions[i].QoS = &one
		}
	}
	return b
}

// noSink stands in for the real one where only the configuration is checked.
type noSink struct{ bridge.Sink }

func (b BridgeConfig) validate() []error {
	var errs []error
	for i, s := range b.Subscriptions {
		if s.QoS != nil && (*s.QoS < 0 || *s.QoS > 2) {
			errs = append(errs, fmt.Errorf("subscriptions[%d].qos %d: want 0, 1 or 2", i, *s.QoS))
			return errs
		}
	}
	if t := b.TLS; t != nil && (t.Cert == "") != (t.Key == "") {
		errs = append(errs, errors.New("tls: cert and key go together"))
	}
	c := b.plain()
	c.Sink = noSink{}
	if _, err := bridge.New(c); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// plain is the part that needs no file.
func (b BridgeConfig) plain() bridge.Config {
	c := bridge.Config{
		Name: b.Name, Brokers: b.Brokers, ClientID: b.ClientID, Username: b.Username,
		SessionExpiry: b.SessionExpiry, ReceiveMaximum: b.ReceiveMaximum,
	}
	for _, s := range b.Subscriptions {
		qos := byte(1)
		if s.QoS != nil {
			qos = byte(*s.QoS)
		}
		c.Subscriptions = append(c.Subscriptions, bridge.Subscription{Filter: s.Filter, QoS: qos})
	}
	return c
}

func (b BridgeConfig) bridgeConfig(n Config) (bridge.Config, error) {
	c := b.plain()
	c.Logger, c.Now = n.Logger, n.Now
	c.MaxPacketBytes = int(n.MQTT.MaxRecordSize) + 64<<10
	if b.TLS != nil {
		var err error
		if c.TLS, err = b.TLS.load(n.Now); err != nil {
			return c, fmt.Errorf("tls: %w", err)
		}
	}
	if b.PasswordFile != "" {
		c.Password = func() ([]byte, error) { return firstLine(b.PasswordFile) }
		if _, err := c.Password(); err != nil {
			return c, err
		}
	}
	return c, nil
}

// firstLine reads a secret from its file.
func firstLine(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read password: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, fmt.Errorf("read password: %s is empty", file)
	}
	return line, nil
}
