package edge

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"tailrace/devices"
	"tailrace/edge/auth"
	"tailrace/storage"
)

// Config is the configuration of a node: one YAML file, decoded strictly (an
// unknown key is an error). Paths are relative to the working directory of the
// process. deploy/edge.example.yaml shows every field.
type Config struct {
	// Node is the node's id: the name in its certificate. Required. The data
	// directory belongs to this id and is refused under another.
	Node string `yaml:"node"`
	// Storage: where and how records are kept.
	Storage StorageConfig `yaml:"storage"`
	// MQTT: the listeners for devices.
	MQTT MQTTConfig `yaml:"mqtt"`
	// Bridges take messages from brokers that exist already.
	Bridges []BridgeConfig `yaml:"bridges"`
	// Routes: ordered rules from MQTT topic to stream, key and event time.
	Routes []devices.Rule `yaml:"routes"`
	// Default is for topics that no route matches. Required: {stream: NAME} or {reject: true}.
	Default devices.Default `yaml:"default"`
	// Topics: storage settings of streams, first match decides.
	Topics []TopicConfig `yaml:"topics"`
	// Devices bounds the registry.
	Devices DevicesConfig `yaml:"devices"`
	// Uplink: the way to the hub. Without hubs the node keeps everything to itself.
	Uplink UplinkConfig `yaml:"uplink"`
	// HTTP: API, metrics and health.
	HTTP HTTPConfig `yaml:"http"`
	// Log: level and format.
	Log LogConfig `yaml:"log"`
	// ShutdownTimeout bounds the whole shutdown; default 10s.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`

	// Not in the file.

	// Version of the software, shown in status and to the hub.
	Version string `yaml:"-"`
	// Now is the clock; nil = time.Now.
	Now func() time.Time `yaml:"-"`
	// Logger; nil = discard.
	Logger *slog.Logger `yaml:"-"`
	// FS is the file system of the store; nil = the operating system's.
	FS storage.FS `yaml:"-"`
	// NewEpoch begins a new epoch of the log at this start: for a log that has lost its
	// end without a trace, or came back from an image, and that the hub fences for it.
	NewEpoch bool `yaml:"-"`
	// ClockSynced says whether somebody keeps Now right; nil = what the kernel says.
	ClockSynced func() bool `yaml:"-"`
	// KernelBoot names this boot of the machine and says how long it lasts; nil = what the
	// kernel says. Without a name each start of the node counts as one.
	KernelBoot func() (id string, up time.Duration) `yaml:"-"`
	// Interface names the interface that leads to a hub; nil = what the kernel would take.
	Interface func(hub string) string `yaml:"-"`
	// PacketConn opens the uplink's socket; nil = UDP.
	PacketConn func() (net.PacketConn, error) `yaml:"-"`
	// Listen opens TCP listeners; nil = net.Listen.
	Listen func(network, address string) (net.Listener, error) `yaml:"-"`
}

// StorageConfig says where records are kept.
type StorageConfig struct {
	// Dir is the data directory. Required. One process at a time.
	Dir string `yaml:"dir"`
	// Classes are the storage classes, a commit log each; the first is the default
	// and keeps sessions and other state. At least one.
	Classes []ClassConfig `yaml:"classes"`
	// MaxSize is the disk budget of all classes together, for example 8GiB; 0 = none.
	MaxSize ByteSize `yaml:"max_size"`
	// Endurance is how many bytes the medium can take in its life, by its maker's word
	// (TBW), for example 40TB; 0 = not stated. With it status and metrics project its life.
	Endurance ByteSize `yaml:"endurance"`
	// ScrubInterval is in what time all of the log is read once to find rot; 0 is 30 days,
	// negative never. It never reads more than 1 MiB/s.
	ScrubInterval time.Duration `yaml:"scrub_interval"`
	// MaxTopics bounds the streams that topics of devices can create; default 1000.
	MaxTopics int `yaml:"max_topics"`
}

// ClassConfig is one storage class.
type ClassConfig struct {
	// Name: lower-case letters, digits, "-", "_".
	Name string `yaml:"name"`
	// WhenFull is required: "reject" (devices hear 0x97 until there is room) or
	// "drop-oldest" (the oldest segment goes, its ranges are declared lost unless
	// the hub has them).
	WhenFull string `yaml:"when_full"`
	// MaxSize is the disk budget, for example 4GiB; 0 = bounded by the free space only.
	MaxSize ByteSize `yaml:"max_size"`
	// Priority says who gives up first when storage.max_size or the file system is used
	// up: the lowest number; of equal ones the last in the list. Default 0.
	Priority int `yaml:"priority"`
	// MinFree is kept free on the file system; 0 = two segments and 64KiB.
	MinFree ByteSize `yaml:"min_free"`
	// CommitInterval is the least time between two commits (the first after idle is
	// immediate). Not set: by the medium, 0 on SSD and NVMe, 100ms on SD and eMMC.
	CommitInterval *time.Duration `yaml:"commit_interval"`
	// SegmentSize: default 4MiB, for a budget (max_size, storage.max_size) below 1GiB
	// 1MiB; the newest segment is held in memory.
	SegmentSize ByteSize `yaml:"segment_size"`
}

// TopicConfig gives streams their storage settings.
type TopicConfig struct {
	// Match is a stream name, or a pattern with "*" and "?".
	Match string `yaml:"match"`
	// Class is the storage class; empty = the first one.
	Class string `yaml:"class"`
	// Retention: older records go, acknowledged or not; 0 = kept until the budget needs the room.
	Retention time.Duration `yaml:"retention"`
	// RetentionSize per partition; 0 = none.
	RetentionSize ByteSize `yaml:"retention_size"`
	// RetentionShare per stream, of the class's max_size, else of storage.max_size:
	// 0.25 = a quarter; 0 = none. With RetentionSize the smaller counts.
	RetentionShare float64 `yaml:"retention_share"`
	// Mode of replication: "in-order" (default); "live-first": after an outage the newest
	// records at once, the gap by and by into the hub's topic <stream>.backfill;
	// "on-demand": records stay here until somebody fetches a range of time.
	Mode string `yaml:"mode"`
	// Priority of sending, -100 to 100; default 0. What waits for the link goes in this order.
	// Streams of 1 and above are urgent: alarms. They go on when a budget is used up or a
	// schedule keeps the rest back.
	Priority int `yaml:"priority"`
	// Sketch: of what the hub does not get at once a coarse account goes ahead, the least, the
	// greatest and the last of every number per device and window, as stream <stream>.sketch.
	Sketch *SketchConfig `yaml:"sketch"`
}

// MQTTConfig is the MQTT server.
type MQTTConfig struct {
	Listeners []ListenerConfig `yaml:"listeners"`
	Auth      AuthConfig       `yaml:"auth"`
	// MaxRecordSize bounds topic, payload and properties of one publish; larger: 0x95. Default 1MiB.
	MaxRecordSize ByteSize `yaml:"max_record_size"`
	// MaxConnections of all listeners; default 20000.
	MaxConnections int `yaml:"max_connections"`
	// MaxLogins of all addresses together that have not logged in yet; default 2048. When it is
	// reached the oldest of the address that has most makes room.
	MaxLogins int `yaml:"max_logins"`
	// ReceiveMaximum: unacknowledged QoS 1 and 2 publishes per MQTT 5 client; default 256.
	ReceiveMaximum int `yaml:"receive_maximum"`
	// MaxSessions remembered over disconnects and restarts; default 100000.
	MaxSessions int `yaml:"max_sessions"`
	// MaxSessionsPerIdentity; default a tenth of MaxSessions. Anonymous clients: of one address, as
	// many as Address.MaxConnections.
	MaxSessionsPerIdentity int `yaml:"max_sessions_per_identity"`
	// MaxSessionExpiry caps what clients ask for; default 720h.
	MaxSessionExpiry time.Duration `yaml:"max_session_expiry"`
	// MaxKeepAlive is imposed on MQTT 5 clients that want a longer keep-alive or none; 0 = not imposed.
	MaxKeepAlive time.Duration `yaml:"max_keep_alive"`
	// TerseRefusals: a refused subscription hears 0x80 Unspecified error instead of its
	// reason, so that nobody can ask what rules there are.
	TerseRefusals bool `yaml:"terse_refusals"`
	// RetainedSize bounds all retained messages together; default 64MiB.
	RetainedSize ByteSize `yaml:"retained_size"`
	// Client bounds what one client may do.
	Client ClientLimits `yaml:"client"`
	// Address bounds what one IP address (IPv6: /64 network) may do before login.
	Address AddressLimits `yaml:"address"`
	// Quarantine keeps out what breaks the protocol or its limits again and again.
	Quarantine QuarantineConfig `yaml:"quarantine"`
}

// ClientLimits bound one client. Size and in-flight limits are MaxRecordSize and ReceiveMaximum.
type ClientLimits struct {
	// PublishRate in messages a second, BytesPerSecond in bytes; above, the client is read
	// more slowly and loses nothing. 0 (default) = no limit.
	PublishRate    int      `yaml:"publish_rate"`
	BytesPerSecond ByteSize `yaml:"bytes_per_second"`
	// MaxTopics that one connection may publish to; more: 0x97. Default 10000.
	MaxTopics int `yaml:"max_topics"`
	// MaxSubscriptions per session; default 200.
	MaxSubscriptions int `yaml:"max_subscriptions"`
}

// AddressLimits bound one address.
type AddressLimits struct {
	// MaxConnections; default 10000.
	MaxConnections int `yaml:"max_connections"`
	// MaxLogins are connections that have not logged in yet; default 1024.
	MaxLogins int `yaml:"max_logins"`
	// ConnectRate is new connections a second, after ConnectBurst; default 500 and MaxConnections.
	ConnectRate  int `yaml:"connect_rate"`
	ConnectBurst int `yaml:"connect_burst"`
	// LoginTimeout from accept to CONNACK; default 10s.
	LoginTimeout time.Duration `yaml:"login_timeout"`
}

// QuarantineConfig: so many offences within Duration keep a device out for Duration.
type QuarantineConfig struct {
	// Strikes; default 10, -1 = no quarantine.
	Strikes int `yaml:"strikes"`
	// Duration; default 1m.
	Duration time.Duration `yaml:"duration"`
}

// ListenerConfig is one MQTT listener.
type ListenerConfig struct {
	// Address, host:port. Port 0 takes a free one. "systemd:NAME" takes the socket that
	// systemd has opened under this name (FileDescriptorName= of the .socket unit).
	Address string `yaml:"address"`
	// Transport: "tcp" (default) or "websocket".
	Transport string `yaml:"transport"`
	// TLS; required unless the address is loopback or AllowPlaintext is set.
	TLS *ServerTLS `yaml:"tls"`
	// AllowPlaintext permits an address that others can reach without TLS: passwords
	// and data are then readable on that network.
	AllowPlaintext bool `yaml:"allow_plaintext"`
}

// ServerTLS names the files of a TLS server.
type ServerTLS struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// ClientCA verifies client certificates; a verified one logs its device in.
	ClientCA string `yaml:"client_ca"`
	// RequireClientCert refuses connections without a verified certificate.
	RequireClientCert bool `yaml:"require_client_cert"`
}

// AuthConfig says who may connect. At least one way is required.
type AuthConfig struct {
	// AllowAnonymous lets everybody in who can reach a listener.
	AllowAnonymous bool `yaml:"allow_anonymous"`
	// PasswordFile has lines "user:hash" (argon2id, written by `tailrace passwd`, or bcrypt).
	// Read again when it changes.
	PasswordFile string `yaml:"password_file"`
	// ACLFile has rules of access, or ACL has them here; see auth.Rules. Without either,
	// who is in may publish and subscribe everywhere. Read again when it changes. An
	// empty or broken file allows nothing.
	ACLFile string   `yaml:"acl_file"`
	ACL     []string `yaml:"acl"`
	// BindClientID: true lets an identity use only client ids of its own, those of ClientIDs,
	// patterns with {user} and maybe * at the end. Default: the name, or the name, one
	// of - _ . : / and anything. false binds nothing. Unset: a certificate has only ids of its
	// own, and nobody else takes one that is another user's of the password file; any other
	// id is free, so that devices may share an account.
	BindClientID *bool    `yaml:"bind_client_id"`
	ClientIDs    []string `yaml:"client_ids"`
	// FailedLogins of one address; beyond, logins are refused before the password is hashed.
	FailedLogins FailedLogins `yaml:"failed_logins"`
	// HashWorker compares passwords; nil = the node itself. Not in the file.
	HashWorker *auth.Worker `yaml:"-"`
}

// FailedLogins: Burst at once (default 10), then PerMinute (default 10).
type FailedLogins struct {
	Burst     int     `yaml:"burst"`
	PerMinute float64 `yaml:"per_minute"`
}

func (a AuthConfig) withDefaults() AuthConfig {
	def(&a.FailedLogins.Burst, 10)
	def(&a.FailedLogins.PerMinute, 10)
	if (a.BindClientID == nil || *a.BindClientID) && a.ClientIDs == nil {
		a.ClientIDs = auth.DefaultClientIDs
	}
	return a
}

// DevicesConfig bounds the device registry.
type DevicesConfig struct {
	// Max devices remembered; default 10000, then those longest silent are forgotten.
	Max int `yaml:"max"`
}

// UplinkConfig is the way to the hub.
type UplinkConfig struct {
	// Hubs, host:port, all serving one store, tried in order. Empty: no uplink.
	Hubs []string `yaml:"hubs"`
	// Fallback, host:port over TCP (TLS), in the order of Hubs: used where UDP does not come
	// through, and left again when it does. Empty: never.
	Fallback []string `yaml:"fallback"`
	// Proxy of the fallback, http://[user:password@]host:port, asked to CONNECT. Empty: none.
	Proxy string `yaml:"proxy"`
	// RateLimit is how many bytes a second the uplink may use; live records go first, and
	// at once, and count. 0 = no limit.
	RateLimit ByteSize `yaml:"rate_limit"`
	// Links are classes of links by interface, each with its own limits; the first that fits counts.
	Links []LinkConfig `yaml:"links"`
	// TLS: this node's certificate and the CA of the hub. Required with Hubs.
	TLS *ClientTLS `yaml:"tls"`
	// Window is how many bytes may be under way; default 8MiB.
	Window ByteSize `yaml:"window"`
	// NoCompression sends batches as they are.
	NoCompression bool `yaml:"no_compression"`
}

// ClientTLS names the files of a TLS client.
type ClientTLS struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"`
	// ServerName expected in the server's certificate; default: the host dialled.
	ServerName string `yaml:"server_name"`
}

// HTTPConfig is the node's own HTTP listener.
type HTTPConfig struct {
	// Address; default 127.0.0.1:8081; "off" = none. It has no login: other than
	// loopback addresses are refused unless AllowRemote is set.
	Address string `yaml:"address"`
	// AllowRemote permits an address that others can reach. Everybody there can read all records.
	AllowRemote bool `yaml:"allow_remote"`
}

// LogConfig is used by the command.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // auto (default: text on a terminal, else json), text, json
}

// LoadConfig reads, decodes strictly and checks a file.
func LoadConfig(file string) (Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return Config{}, fmt.Errorf("open configuration: %w", err)
	}
	defer f.Close()
	c, err := ParseConfig(f)
	if err != nil {
		return c, fmt.Errorf("configuration %s: %w", file, err)
	}
	return c, nil
}

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 4 << 20

// ParseConfig decodes strictly and checks.
func ParseConfig(r io.Reader) (Config, error) {
	var c Config
	dec := yaml.NewDecoder(io.LimitReader(r, maxConfigBytes))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		if errors.Is(err, io.EOF) {
			return c, errors.New("the file is empty")
		}
		return c, err
	}
	if err := dec.Decode(new(Config)); !errors.Is(err, io.EOF) {
		return c, errors.New("more than one document in the file")
	}
	return c, c.withDefaults().validate()
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (c Config) withDefaults() Config {
	c.Storage.Classes = slices.Clone(c.Storage.Classes)
	c.MQTT.Listeners = slices.Clone(c.MQTT.Listeners)
	c.Bridges = slices.Clone(c.Bridges)
	def(&c.Storage.MaxTopics, 1000)
	def(&c.MQTT.MaxRecordSize, 1<<20)
	def(&c.MQTT.RetainedSize, 64<<20)
	c.MQTT.Auth = c.MQTT.Auth.withDefaults()
	def(&c.MQTT.Client.MaxTopics, 10_000)
	def(&c.MQTT.Quarantine.Strikes, 10)
	def(&c.MQTT.Quarantine.Duration, time.Minute)
	for i := range c.MQTT.Listeners {
		def(&c.MQTT.Listeners[i].Transport, "tcp")
	}
	for i := range c.Bridges {
		c.Bridges[i] = c.Bridges[i].withDefaults(c.Node)
	}
	c.Topics = slices.Clone(c.Topics)
	for i, t := range c.Topics {
		if t.Sketch != nil {
			window := t.Sketch.Window
			def(&window, time.Minute)
			c.Topics[i].Sketch = &SketchConfig{window}
		}
	}
	def(&c.Devices.Max, 10_000)
	def(&c.HTTP.Address, "127.0.0.1:8081")
	def(&c.Log.Level, "info")
	def(&c.Log.Format, "auto")
	def(&c.ShutdownTimeout, 10*time.Second)
	def(&c.Version, "devel")
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.ClockSynced == nil {
		c.ClockSynced = kernelSynced
	}
	if c.KernelBoot == nil {
		c.KernelBoot = kernelBoot
	}
	if c.Listen == nil {
		c.Listen = net.Listen
	}
	return c
}

// segmentSize is a class's own or the default. A new segment costs two files, four
// fsyncs and their directory, a tenth of a busy node's CPU time when there is one per MiB.
func (s StorageConfig) segmentSize(cc ClassConfig) ByteSize {
	b := s.budget(cc.Name)
	switch {
	case cc.SegmentSize != 0:
		return cc.SegmentSize
	case b > 0 && b < 1<<30:
		return 1 << 20
	}
	return 4 << 20
}

// budget is what a class may take: the smaller of its own and that of all; 0 = no bound.
func (s StorageConfig) budget(class string) ByteSize {
	b := s.MaxSize
	for i, cc := range s.Classes {
		if (cc.Name == class || class == "" && i == 0) && cc.MaxSize > 0 && (b == 0 || cc.MaxSize < b) {
			b = cc.MaxSize
		}
	}
	return b
}

// retentionBytes of a stream; 0 = none.
func (s StorageConfig) retentionBytes(t TopicConfig) int64 {
	size := int64(t.RetentionSize)
	if t.RetentionShare > 0 {
		share := int64(float64(s.budget(t.Class)) * t.RetentionShare)
		if size == 0 || share < size {
			size = max(share, 1)
		}
	}
	return size
}

func (l LogConfig) level() slog.Level {
	switch l.Level {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Handler makes the log handler: text for people, JSON for machines.
func (l LogConfig) Handler(w io.Writer, terminal bool) slog.Handler {
	o := &slog.HandlerOptions{Level: l.level()}
	if strings.EqualFold(l.Format, "text") || l.Format != "json" && terminal {
		return slog.NewTextHandler(w, o)
	}
	return slog.NewJSONHandler(w, o)
}
