package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// program is an outside program that runs beside a test.
type program struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	out  *bytes.Buffer
	done chan error
}

// java starts a class of the artefacts in lib.
func java(t *testing.T, name, lib string, args ...string) *program {
	t.Helper()
	return launch(t, name, exec.Command("java", append([]string{"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-XX:TieredStopAtLevel=1", "-Xmx384m", "-cp", filepath.Join(lib, "*")}, args...)...))
}

func launch(t *testing.T, name string, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{t: t, name: name, cmd: cmd, out: new(bytes.Buffer), done: make(chan error, 1)}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9.
func (p *program) kill() {
	if p.cmd.Process.Kill(); p.done != nil {
		<-p.done
		p.done = nil
	}
}

// await waits until ok, and fails when the program ends before.
func (p *program) await(what string, ok func() bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), clientTime)
	defer cancel()
	if err := until(ctx, p.done, ok); err != nil {
		if errors.Is(err, errEnded) {
			p.done = nil
		}
		p.kill()
		s := p.out.String()
		p.t.Fatalf("%s: waiting for %s: %v\n%s", p.name, what, err, s[max(0, len(s)-6000):])
	}
}

func properties(t *testing.T, name string, lines ...string) string {
	t.Helper()
	return writeFile(t, name, strings.Join(lines, "\n")+"\n")
}

func countLines(file string) int {
	b, _ := os.ReadFile(file)
	return bytes.Count(b, []byte("\n"))
}

// TestConnectStandalone: Kafka Connect imports a file into a topic of the hub and
// exports a topic to a file, is killed, and goes on where it stopped.
func TestConnectStandalone(t *testing.T) {
	dir := clientsDir(t)
	h := newHub(t)
	wind := h.topic("wind", 1)
	h.topic("imported", 1)
	h.fill(wind.Partition(0), 0, 1000, 100, true)
	work := t.TempDir()
	in, out := filepath.Join(work, "in.txt"), filepath.Join(work, "out.txt")
	imported, _ := h.store.Topic("imported")
	write := func(from, to int) {
		t.Helper()
		f, err := os.OpenFile(in, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for i := from; i < to; i++ {
			fmt.Fprintf(f, "line %d\n", i)
		}
	}
	write(0, 1000)
	worker := properties(t, "worker.properties", "bootstrap.servers="+h.addr, "key.converter=org.apache.kafka.connect.storage.StringConverter",
		"value.converter=org.apache.kafka.connect.storage.StringConverter", "offset.storage.file.filename="+filepath.Join(work, "offsets"),
		"offset.flush.interval.ms=300", "listeners=http://127.0.0.1:0", "plugin.discovery=hybrid_warn")
	source := properties(t, "source.properties", "name=import", "connector.class=org.apache.kafka.connect.file.FileStreamSourceConnector", "tasks.max=1", "file="+in, "topic=imported")
	sink := properties(t, "sink.properties", "name=export", "connector.class=org.apache.kafka.connect.file.FileStreamSinkConnector", "tasks.max=1", "file="+out, "topics=wind",
		"consumer.override.auto.offset.reset=earliest")
	start := func() *program {
		return java(t, "connect", filepath.Join(dir, "lib"), "org.apache.kafka.connect.cli.ConnectStandalone", worker, source, sink)
	}
	p := start()
	p.await("the import", func() bool { return imported.Partition(0).HighWatermark() >= 1000 })
	p.await("the export", func() bool { return countLines(out) >= 1000 })
	p.kill()
	write(1000, 1500)
	h.fill(wind.Partition(0), 1000, 500, 50, false)
	p = start()
	values := func() map[string]bool {
		m := map[string]bool{}
		for i := range 1500 {
			m[fmt.Sprint("line ", i)] = true
		}
		for _, r := range poll(t, h.client(consumeAll("imported")), int(imported.Partition(0).HighWatermark())) {
			delete(m, string(r.Value))
		}
		return m
	}
	p.await("the rest of the import", func() bool { return imported.Partition(0).HighWatermark() >= 1500 && len(values()) == 0 })
	p.await("the rest of the export", func() bool {
		b, _ := os.ReadFile(out)
		lines := map[string]bool{}
		for line := range strings.Lines(string(b)) {
			lines[strings.TrimSpace(line)] = true
		}
		for i := range 1500 {
			if !lines[fmt.Sprint("v", i)] {
				return false
			}
		}
		return true
	})
	// At least once, as Connect promises; what it had committed does not come again.
	if n := countLines(out); n > 2600 {
		t.Errorf("%d lines exported for 1500 records", n)
	}
}

// consumeAll reads partition 0 of a topic from the beginning.
func consumeAll(topic string) kgo.Opt {
	return kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}})
}
