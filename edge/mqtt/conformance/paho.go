package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	ranTests  = regexp.MustCompile(`(?m)^Ran (\d+) tests?`)
	failTests = regexp.MustCompile(`(?m)^(?:FAIL|ERROR): (\S+)`)
)

// runPaho runs one file of paho.mqtt.testing/interoperability as it is.
func runPaho(python, dir, file string, want int, addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return false
	}
	// A suite takes 2 minutes; one that hangs is a failure.
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	// client_test.py leaves its own options to unittest, which does not know them: this
	// sets what its main block would.
	const driver = `
import sys, importlib, logging, unittest
sys.path.insert(0, '.')
m = importlib.import_module(sys.argv[1])
m.host, m.port = sys.argv[2], int(sys.argv[3])
m.topics = ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")
m.wildtopics = ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")
m.nosubscribe_topics = ("test/nosubscribe",)
m.topic_prefix = "client_test5/"
logging.getLogger().setLevel(logging.ERROR)
suite = unittest.defaultTestLoader.loadTestsFromTestCase(m.Test)
sys.exit(not unittest.TextTestRunner(stream=sys.stderr, verbosity=2).run(suite).wasSuccessful())
`
	cmd := exec.CommandContext(ctx, python, "-c", driver, strings.TrimSuffix(file, ".py"), host, port)
	cmd.Dir = filepath.Join(dir, "interoperability")
	out, err := cmd.CombinedOutput()
	ran := 0
	if m := ranTests.FindSubmatch(out); m != nil {
		ran, _ = strconv.Atoi(string(m[1]))
	}
	failed := failTests.FindAllSubmatch(out, -1)
	for _, m := range failed {
		fmt.Printf("%s: %s failed\n", file, m[1])
	}
	fmt.Printf("paho.mqtt.testing %s: %d of %d\n", file, ran-len(failed), ran)
	if ran == 0 || err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s\n", file, err, out[max(0, len(out)-4000):])
	}
	return ran >= want && len(failed) == 0 && err == nil
}
