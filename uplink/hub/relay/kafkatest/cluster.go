// Package kafkatest starts real Apache Kafka clusters on loopback, from the artefacts
// that .ci/kafka-clients fetches: for tests, for measurements and for make kafka-up.
//
//	c, err := kafkatest.Start(ctx, kafkatest.Options{Dir: dir, Brokers: 3})
//	defer c.Close()
//	c.Kill(0)                  // kill -9
//	err = c.Restart(ctx, 0)
//
// Each broker is broker and controller at once (KRaft), all are formatted with the same
// new cluster id. Nothing of it is for production.
package kafkatest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// Options describe a cluster.
type Options struct {
	Dir     string // empty directory for data, configuration and logs; required
	Brokers int    // default 3
	Heap    string // of a broker, as for java -Xmx; default 320m
	Fast    bool   // all of Java's compiler: a slower start, more records per second
	Detach  bool   // the brokers outlive this process
	Lib     string // directory of Kafka's jars; default where .ci/kafka-clients puts them

	// Properties are added to every broker's file, and stand against what is there.
	Properties []string

	// Client options for brokers that do not talk to everybody: see Start.
	Client []kgo.Opt
	// Protocol of the clients' listener, as in listener.security.protocol.map; default PLAINTEXT.
	Protocol string
	// Also is the protocol of a second listener for clients, ALSO; empty = there is none.
	Also string
}

// Cluster is a running cluster.
type Cluster struct {
	Addrs   []string // host:port of the brokers, for clients
	Also    []string // the same of the second listener
	opt     Options
	brokers []*broker
}

type broker struct {
	conf string
	log  string

	mu  sync.Mutex // guards what follows
	cmd *exec.Cmd
	end chan struct{} // closed when the process has ended
}

// Lib is where .ci/kafka-clients puts Kafka's jars, brokers among them.
func Lib() (string, error) {
	dir := os.Getenv("TAILRACE_KAFKA_CLIENTS")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cache, "tailrace", "kafka-clients")
	}
	lib := filepath.Join(dir, "lib")
	if _, err := os.Stat(lib); err != nil {
		return "", fmt.Errorf("jars of Kafka are not set up, run .ci/kafka-clients: %w", err)
	}
	return lib, nil
}

// Start formats and starts a cluster, and returns when every broker is in it.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	if o.Brokers == 0 {
		o.Brokers = 3
	}
	if o.Heap == "" {
		o.Heap = "320m"
	}
	if o.Protocol == "" {
		o.Protocol = "PLAINTEXT"
	}
	if o.Lib == "" {
		if o.Lib, err = Lib(); err != nil {
			return nil, err
		}
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	ports, err := freePorts(4 * o.Brokers)
	if err != nil {
		return nil, err
	}
	c := &Cluster{opt: o}
	var voters []string
	for i := range o.Brokers {
		c.Addrs = append(c.Addrs, fmt.Sprintf("127.0.0.1:%d", ports[4*i]))
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%d", i+1, ports[4*i+1]))
	}
	rf, isr := min(3, o.Brokers), min(2, max(1, o.Brokers-1))
	for i := range o.Brokers {
		dir := filepath.Join(o.Dir, fmt.Sprint("broker", i+1))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		lines := []string{"process.roles=broker,controller", fmt.Sprint("node.id=", i+1), "controller.quorum.voters=" + strings.Join(voters, ","),
			fmt.Sprintf("listeners=CLIENT://%s,CONTROLLER://127.0.0.1:%d,INTERNAL://127.0.0.1:%d", c.Addrs[i], ports[4*i+1], ports[4*i+2]),
			fmt.Sprintf("advertised.listeners=CLIENT://%s,INTERNAL://127.0.0.1:%d", c.Addrs[i], ports[4*i+2]),
			"controller.listener.names=CONTROLLER", "listener.security.protocol.map=CONTROLLER:PLAINTEXT,INTERNAL:PLAINTEXT,CLIENT:" + o.Protocol,
			"inter.broker.listener.name=INTERNAL", "log.dirs=" + filepath.Join(dir, "data"),
			"auto.create.topics.enable=false", "group.initial.rebalance.delay.ms=0", "offsets.topic.num.partitions=4", "transaction.state.log.num.partitions=4",
			fmt.Sprint("offsets.topic.replication.factor=", rf), fmt.Sprint("transaction.state.log.replication.factor=", rf), fmt.Sprint("transaction.state.log.min.isr=", isr),
			fmt.Sprint("share.coordinator.state.topic.replication.factor=", rf), fmt.Sprint("share.coordinator.state.topic.min.isr=", isr),
			fmt.Sprint("default.replication.factor=", rf), fmt.Sprint("min.insync.replicas=", isr),
			"log.retention.ms=-1"} // records of tests are old
		if o.Also != "" {
			c.Also = append(c.Also, fmt.Sprintf("127.0.0.1:%d", ports[4*i+3]))
			for k, l := range lines {
				switch name, _, _ := strings.Cut(l, "="); name {
				case "listeners", "advertised.listeners":
					lines[k] += ",ALSO://" + c.Also[i]
				case "listener.security.protocol.map":
					lines[k] += ",ALSO:" + o.Also
				}
			}
		}
		b := &broker{conf: filepath.Join(dir, "server.properties"), log: filepath.Join(dir, "broker.log")}
		if err := os.WriteFile(b.conf, []byte(strings.Join(append(lines, o.Properties...), "\n")+"\n"), 0o600); err != nil {
			return nil, err
		}
		c.brokers = append(c.brokers, b)
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	id := make([]byte, 16)
	rand.Read(id)
	cluster := "--cluster-id=" + base64.RawURLEncoding.EncodeToString(id)
	errs := make(chan error, len(c.brokers))
	for _, b := range c.brokers {
		go func() {
			out, err := exec.CommandContext(ctx, "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", filepath.Join(o.Lib, "*"), "kafka.tools.StorageTool", "format", cluster, "-c", b.conf).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("format: %w\n%s", err, tail(out))
			}
			errs <- err
		}()
	}
	for range c.brokers {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return nil, err
	}
	for i := range c.brokers {
		if err = c.start(i); err != nil {
			return nil, err
		}
	}
	return c, c.Await(ctx, o.Brokers)
}

func (c *Cluster) start(i int) error {
	b := c.brokers[i]
	out, err := os.OpenFile(b.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	args := []string{"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true", "-Xmx" + c.opt.Heap}
	if !c.opt.Fast {
		args = append(args, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
	}
	cmd := exec.Command("java", append(args, "-cp", filepath.Join(c.opt.Lib, "*"), "kafka.Kafka", b.conf)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, filepath.Dir(b.conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: c.opt.Detach}
	if !c.opt.Detach {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	end := make(chan struct{})
	go func() { // not waited for when detached
		cmd.Wait()
		close(end)
	}()
	b.mu.Lock()
	b.cmd, b.end = cmd, end
	b.mu.Unlock()
	return nil
}

// Await returns when n brokers are in the cluster and it has a controller.
func (c *Cluster) Await(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.Addrs...), kgo.MetadataMinAge(10 * time.Millisecond), kgo.MaxVersions(kversion.Stable())}, c.opt.Client...)...)
	if err != nil {
		return err
	}
	defer cl.Close()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		try, stop := context.WithTimeout(ctx, 5*time.Second)
		m, err := kmsg.NewPtrMetadataRequest().RequestWith(try, cl)
		stop()
		if err == nil && len(m.Brokers) >= n && m.ControllerID >= 0 {
			return nil
		}
		for i, b := range c.brokers {
			b.mu.Lock()
			end := b.end
			b.mu.Unlock()
			select {
			case <-end:
				if n == len(c.brokers) {
					return fmt.Errorf("broker %d has ended: %s", i+1, c.Log(i))
				}
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster is not there: %w (%v): %s", ctx.Err(), err, c.Log(0))
		case <-tick.C:
		}
	}
}

// Log is the end of what a broker has logged.
func (c *Cluster) Log(i int) string {
	b, _ := os.ReadFile(c.brokers[i].log)
	return tail(b)
}

func tail(b []byte) string { return string(bytes.TrimSpace(b[max(0, len(b)-4000):])) }

// PID is the process of a broker.
func (c *Cluster) PID(i int) int {
	b := c.brokers[i]
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return 0
	}
	return b.cmd.Process.Pid
}

// Kill is kill -9, and returns when the process has ended.
func (c *Cluster) Kill(i int) {
	b := c.brokers[i]
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cmd == nil {
		return
	}
	b.cmd.Process.Kill() // a paused one, too
	<-b.end
}

// Pause stops the process of a broker, Resume lets it go on.
func (c *Cluster) Pause(i int) error { return c.signal(i, syscall.SIGSTOP) }

// Resume undoes Pause.
func (c *Cluster) Resume(i int) error { return c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, s syscall.Signal) error {
	return syscall.Kill(c.PID(i), s)
}

// Restart starts a broker that was killed, and returns when all are in the cluster.
func (c *Cluster) Restart(ctx context.Context, i int) error {
	if err := c.start(i); err != nil {
		return err
	}
	return c.Await(ctx, len(c.brokers))
}

// Close ends the brokers. Their files stay.
func (c *Cluster) Close() {
	for i := range c.brokers {
		c.Kill(i)
	}
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() // all at once, else one comes twice
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// Dir is where the cluster's files are.
func (c *Cluster) Dir() string { return c.opt.Dir }
