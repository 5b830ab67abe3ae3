package hub

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"tailrace/storage"
)

// Config is the hub's configuration, one YAML file. Paths are relative to the
// working directory. deploy/hub.example.yaml documents it for operators.
type Config struct {
	DataDir string `yaml:"data_dir"` // required; one hub at a time
	Listen  string `yaml:"listen"`   // UDP address for nodes; default ":7443"

	ListenTCP string `yaml:"listen_tcp"` // TCP address for nodes whose networks do not let UDP pass, for example ":443"; default none

	TLS    TLSConfig   `yaml:"tls"`    // required: nodes prove themselves by certificate
	HTTP   HTTPConfig  `yaml:"http"`   // API, console, metrics
	Kafka  KafkaConfig `yaml:"kafka"`  // Kafka protocol
	Log    LogConfig   `yaml:"log"`    // of the daemon
	Limits Limits      `yaml:"limits"` // memory and connections

	Store StoreConfig `yaml:"store"` // where the records are; default in data_dir

	Nodes   []string      `yaml:"nodes"`   // globs of node ids that may connect; none = every certificate of the CA
	Classes []ClassConfig `yaml:"classes"` // storage classes; default one, "data"
	// ScrubInterval is in what time everything stored is read once to find rot; 0 is 30
	// days, negative never. It never reads more than 1 MiB/s.
	ScrubInterval Duration `yaml:"scrub_interval"`
	// NodeRules says what each node may write; none = every node every topic.
	NodeRules []NodeRule `yaml:"node_rules"`

	Topics []TopicConfig `yaml:"topics"` // how topics are made; default every name, 4 partitions, kept for ever

	// Set by the program, not by the file.
	Logger     *slog.Logger     `yaml:"-"` // nil = discard
	Now        func() time.Time `yaml:"-"` // nil = time.Now
	FS         storage.FS       `yaml:"-"` // nil = the operating system
	Software   string           `yaml:"-"` // name and version, shown in the console
	PacketConn net.PacketConn   `yaml:"-"` // instead of Listen
}

// TLSConfig names the hub's own certificate and the CA of its nodes.
type TLSConfig struct {
	Cert string `yaml:"cert"` // PEM file
	Key  string `yaml:"key"`  // PEM file
	CA   string `yaml:"ca"`   // PEM file: who signs nodes
}

// HTTPConfig is the listener of API, console, metrics and health. Without TLS
// and authentication it binds a loopback address only.
type HTTPConfig struct {
	Listen    string `yaml:"listen"`     // default "127.0.0.1:8080"; "off" = none
	Cert      string `yaml:"cert"`       // PEM file: serve HTTPS
	Key       string `yaml:"key"`        // PEM file
	ClientCA  string `yaml:"client_ca"`  // PEM file: callers need a certificate of this CA
	TokenFile string `yaml:"token_file"` // callers send one of its lines: "Authorization: Bearer <line>", or as the password in a browser
	ReadOnly  bool   `yaml:"read_only"`  // no POST of records, nothing else that changes anything

	// Fetch says which topics that stay at their nodes may be fetched; none = all.
	Fetch []FetchRule `yaml:"fetch"`
}

// KafkaConfig is the Kafka protocol listener. Without TLS and a way to tell who
// the clients are it binds a loopback address only.
type KafkaConfig struct {
	Listen     string `yaml:"listen"`     // default "127.0.0.1:9092"; "off" = none
	Advertised string `yaml:"advertised"` // host:port that clients are told; default the listener's own
	Cert       string `yaml:"cert"`       // PEM file: serve TLS
	Key        string `yaml:"key"`        // PEM file
	ClientCA   string `yaml:"client_ca"`  // PEM file: clients need a certificate of this CA; its common name is the user ("node:NAME" of a node's)
	UsersFile  string `yaml:"users_file"` // clients log in by SASL (PLAIN, SCRAM) as one of its users; tailrace kafka-user makes lines
	RulesFile  string `yaml:"rules_file"` // who may do what with which topics and groups; default all may do everything
}

// LogConfig is the daemon's own log, on standard error.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info, warn, error; default info
	Format string `yaml:"format"` // text or json; default text
}

// Limits bound memory and connections.
type Limits struct {
	MaxNodes int `yaml:"max_nodes"` // sessions at once; default 16384
	// Handshakes of nodes under way at once, over QUIC and TCP together: of all (default 512), of one
	// address (IPv6: /64; default 64). Beyond them nodes are refused and come again later.
	MaxHandshakes           int `yaml:"max_handshakes"`
	MaxHandshakesPerAddress int `yaml:"max_handshakes_per_address"`

	MaxReaders  int  `yaml:"max_readers"`  // HTTP record queries and tails at once; default 64
	QueuedBytes Size `yaml:"queued_bytes"` // records waiting for the disk; default 128MiB
	MaxBody     Size `yaml:"max_body"`     // of one POST; default 8MiB
}

// ClassConfig is one storage class: a commit log of its own.
type ClassConfig struct {
	Name           string   `yaml:"name"`
	SegmentBytes   Size     `yaml:"segment_bytes"`   // default 8MiB; each class keeps one in memory
	CommitInterval Duration `yaml:"commit_interval"` // least time between commits; default 0: as fast as the disk
	MaxBytes       Size     `yaml:"max_bytes"`       // disk budget; 0 = none
	WhenFull       string   `yaml:"when_full"`       // reject or drop-oldest; required with max_bytes
}

// TopicConfig is a rule for topics that are made when their first record arrives.
type TopicConfig struct {
	Match          string   `yaml:"match"`           // glob, the first rule that fits counts
	Partitions     int      `yaml:"partitions"`      // default 4
	Class          string   `yaml:"class"`           // default the first class
	Retention      Duration `yaml:"retention"`       // 90d, 12h; default 0: for ever
	RetentionBytes Size     `yaml:"retention_bytes"` // default 0: no limit
	RetentionBy    string   `yaml:"retention_by"`    // arrival (default: late data stays for its time) or record (its own time)
}

// Duration is a time.Duration that also reads days: 90d, 1d12h.
type Duration time.Duration

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseDuration(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %q is not a duration such as 500ms, 12h or 90d", n.Line, n.Value)
	}
	*d = Duration(v)
	return nil
}

func parseDuration(s string) (time.Duration, error) {
	var days time.Duration
	if i := strings.IndexByte(s, 'd'); i > 0 {
		n, err := strconv.ParseUint(s[:i], 10, 16) // 65535 days fit a Duration
		if err != nil {
			return 0, err
		}
		if days, s = time.Duration(n)*24*time.Hour, s[i+1:]; s == "" {
			return days, nil
		}
	}
	v, err := time.ParseDuration(s)
	if err == nil && (v < 0 || days+v < days) {
		err = errors.New("out of range")
	}
	return days + v, err
}

// Size is a number of bytes: 1048576, 8MiB, 2GB.
type Size int64

// UnmarshalYAML implements yaml.Unmarshaler.
func (s *Size) UnmarshalYAML(n *yaml.Node) error {
	v, err := parseSize(n.Value)
	if err != nil || n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: %q is not a size such as 1048576, 64KiB, 8MiB or 2GB", n.Line, n.Value)
	}
	*s = Size(v)
	return nil
}

func parseSize(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if i < 0 {
		i = len(s)
	}
	n, err := strconv.ParseInt(s[:i], 10, 64)
	if err != nil {
		return 0, err
	}
	units := map[string]int64{"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
	u, ok := units[strings.TrimSpace(s[i:])]
	if !ok || n > (1<<62)/u {
		return 0, errors.New("unknown unit or out of range")
	}
	return n * u, nil
}

// LoadConfig reads a file strictly: a key that does not exist is an error.
func LoadConfig(file string) (Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Config{}, err
	}
	c, err := ParseConfig(b)
	if err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// ParseConfig decodes and checks a configuration. All problems are reported at once.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, err
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return c, errors.New("more than one YAML document")
	}
	return c, c.Validate()
}

func (c Config) withDefaults() Config {
	c.Listen = cmp.Or(c.Listen, ":7443")
	c.HTTP.Listen = cmp.Or(c.HTTP.Listen, "127.0.0.1:8080")
	partitions := 4
	if c.Store.Kafka != nil {
		c.Kafka.Listen, partitions = "off", c.shards()
	}
	c.Kafka.Listen = cmp.Or(c.Kafka.Listen, "127.0.0.1:9092")
	c.Log.Level = cmp.Or(c.Log.Level, "info")
	c.Log.Format = cmp.Or(c.Log.Format, "text")
	c.Limits.MaxNodes = cmp.Or(c.Limits.MaxNodes, 16384)
	c.Limits.MaxHandshakes = cmp.Or(c.Limits.MaxHandshakes, 512)
	c.Limits.MaxHandshakesPerAddress = cmp.Or(c.Limits.MaxHandshakesPerAddress, min(64, c.Limits.MaxHandshakes))
	c.Limits.MaxReaders = cmp.Or(c.Limits.MaxReaders, 64)
	c.Limits.QueuedBytes = cmp.Or(c.Limits.QueuedBytes, 128<<20)
	c.Limits.MaxBody = cmp.Or(c.Limits.MaxBody, 8<<20)
	if len(c.Classes) == 0 {
		c.Classes = []ClassConfig{{Name: "data"}}
	}
	c.Classes = slices.Clone(c.Classes)
	for i := range c.Classes {
		c.Classes[i].SegmentBytes = cmp.Or(c.Classes[i].SegmentBytes, 8<<20)
	}
	if len(c.Topics) == 0 {
		c.Topics = []TopicConfig{{Match: "*"}}
	}
	c.Topics = slices.Clone(c.Topics)
	for i := range c.Topics {
		t := &c.Topics[i]
		t.Partitions = cmp.Or(t.Partitions, partitions)
		t.Class = cmp.Or(t.Class, c.Classes[0].Name)
		t.RetentionBy = cmp.Or(t.RetentionBy, "arrival")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Software = cmp.Or(c.Software, "tailrace-hub")
	return c
}

// Validate reports every problem of the configuration that can be seen without
// opening anything.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	c.validateStore(bad)
	c = c.withDefaults()
	if c.DataDir == "" {
		bad("data_dir is required: the directory of the central store")
	}
	if c.TLS.Cert == "" || c.TLS.Key == "" || c.TLS.CA == "" {
		bad("tls: cert, key and ca are required: nodes connect with certificates only (tailrace dev-certs makes a set)")
	}
	if c.PacketConn == nil {
		if err := checkAddr(c.Listen); err != nil {
			bad("listen: %w", err)
		}
	}
	if c.ListenTCP != "" {
		if err := checkAddr(c.ListenTCP); err != nil {
			bad("listen_tcp: %w", err)
		}
	}
	checkListener(bad, "http", c.HTTP.Listen, c.HTTP.Cert, c.HTTP.Key, c.HTTP.ClientCA, c.HTTP.ClientCA != "" || c.HTTP.TokenFile != "", "client_ca or token_file")
	checkListener(bad, "kafka", c.Kafka.Listen, c.Kafka.Cert, c.Kafka.Key, c.Kafka.ClientCA, c.Kafka.ClientCA != "" || c.Kafka.UsersFile != "", "client_ca or users_file")
	if c.Kafka.Advertised != "" {
		if err := checkAddr(c.Kafka.Advertised); err != nil {
			bad("kafka.advertised: %w", err)
		}
	}
	if _, err := ParseLevel(c.Log.Level); err != nil {
		bad("log.level: %w", err)
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		bad("log.format %q: use text or json", c.Log.Format)
	}
	for _, g := range c.Nodes {
		if _, err := path.Match(g, "x"); err != nil {
			bad("nodes: %q is not a pattern", g)
		}
	}
	if c.Limits.MaxHandshakes < 1 || c.Limits.MaxHandshakesPerAddress < 1 || c.Limits.MaxHandshakesPerAddress > c.Limits.MaxHandshakes {
		bad("limits: max_handshakes is at least 1, max_handshakes_per_address 1 to max_handshakes")
	}
	if c.Limits.MaxNodes < 1 || c.Limits.MaxReaders < 1 {
		bad("limits: max_nodes and max_readers are at least 1")
	}
	if c.Limits.QueuedBytes < 8<<20 || c.Limits.MaxBody < 1 || c.Limits.MaxBody > 64<<20 {
		bad("limits: queued_bytes is at least 8MiB, max_body 1 to 64MiB")
	}
	classes := map[string]bool{}
	for i, k := range c.Classes {
		if k.Name == "" || classes[k.Name] {
			bad("classes[%d]: name %q is empty or there twice", i, k.Name)
		}
		classes[k.Name] = true
		if k.MaxBytes > 0 && k.WhenFull == "" {
			bad("classes[%d] (%s): max_bytes needs when_full: reject or drop-oldest", i, k.Name)
		}
		if k.WhenFull != "" {
			if _, err := storage.ParseFullPolicy(k.WhenFull); err != nil {
				bad("classes[%d] (%s): when_full: %w", i, k.Name, err)
			}
		}
	}
	validateNodeRules(c.NodeRules, bad)
	validateFetch(c.HTTP.Fetch, bad)
	for i, t := range c.Topics {
		if _, err := path.Match(t.Match, "x"); err != nil || t.Match == "" {
			bad("topics[%d]: match %q is not a pattern", i, t.Match)
		}
		if t.Partitions < 1 || t.Partitions > 1024 {
			bad("topics[%d] (%s): partitions %d: 1 to 1024", i, t.Match, t.Partitions)
		}
		if !classes[t.Class] {
			bad("topics[%d] (%s): there is no class %q", i, t.Match, t.Class)
		}
		if t.RetentionBy != "arrival" && t.RetentionBy != "record" {
			bad("topics[%d] (%s): retention_by %q: use arrival or record", i, t.Match, t.RetentionBy)
		}
	}
	return errors.Join(errs...)
}

// checkListener holds the rule that nothing is served to a network without
// encryption and authentication.
func checkListener(bad func(string, ...any), name, listen, cert, key, clientCA string, auth bool, how string) {
	if listen == "off" {
		return
	}
	if (cert == "") != (key == "") {
		bad("%s: cert and key go together", name)
	}
	if clientCA != "" && cert == "" {
		bad("%s: client_ca needs cert and key", name)
	}
	if err := checkAddr(listen); err != nil {
		bad("%s.listen: %w", name, err)
		return
	}
	if !isLoopback(listen) && (cert == "" || !auth) {
		bad("%s.listen %q is reachable from other machines: configure cert and key, and %s, or listen on 127.0.0.1", name, listen, how)
	}
}

func checkAddr(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: the port is not a number from 0 to 65535", s)
	}
	return nil
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ParseLevel reads debug, info, warn or error.
func ParseLevel(s string) (slog.Level, error) {
	switch s {
	case "debug":
		return slog.LevelDebug, nil
	case "info", "":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q: use debug, info, warn or error", s)
}

func (c Config) storage() storage.Config {
	sc := storage.Config{Dir: c.DataDir, FS: c.FS, Now: c.Now, Logger: c.Logger, ScrubInterval: time.Duration(c.ScrubInterval)}
	for _, k := range c.Classes {
		policy, _ := storage.ParseFullPolicy(k.WhenFull) // checked by Validate; none without a budget
		sc.Classes = append(sc.Classes, storage.ClassConfig{Name: k.Name, SegmentBytes: int(k.SegmentBytes),
			CommitInterval: time.Duration(k.CommitInterval), MaxBytes: int64(k.MaxBytes), WhenFull: policy})
	}
	return sc
}

func (c Config) rules() []TopicRule {
	var out []TopicRule
	for _, t := range c.Topics {
		out = append(out, TopicRule{Match: t.Match, Partitions: t.Partitions, Class: t.Class, Retention: time.Duration(t.Retention),
			RetentionBytes: int64(t.RetentionBytes), RetentionByRecords: t.RetentionBy == "record"})
	}
	return out
}
