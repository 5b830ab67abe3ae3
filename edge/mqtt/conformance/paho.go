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

// runPaho runs one file of paho.mqtt.testing/interoperability as it is. One test of
// each wants a filter that nobody may subscribe to, which a wildcard that the other
// tests use covers: with our rules who is refused the one is refused the other, so it
// runs against a node of its own, refusing.
func runPaho(python, dir, file string, want int, addr, refusing string) bool {
	ran, passed := 0, 0
	parts := map[string]string{"others": addr, "refused": refusing}
	if refusing == "" {
		parts = map[string]string{"all": addr}
	}
	for part, at := range parts {
		r, p := runPahoPart(python, dir, file, part, at)
		ran, passed = ran+r, passed+p
	}
	fmt.Printf("paho.mqtt.testing %s: %d of %d\n", file, passed, ran)
	return passed >= want
}

func runPahoPart(python, dir, file, part, addr string) (ran, passed int) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 0, 0
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
suite = unittest.TestSuite(t for t in unittest.defaultTestLoader.loadTestsFromTestCase(m.Test) if sys.argv[4] == 'all' or (t._testMethodName == 'test_subscribe_failure') == (sys.argv[4] == 'refused'))
sys.exit(not unittest.TextTestRunner(stream=sys.stderr, verbosity=2).run(suite).wasSuccessful())
`
	cmd := exec.CommandContext(ctx, python, "-c", driver, strings.TrimSuffix(file, ".py"), host, port, part)
	cmd.Dir = filepath.Join(dir, "interoperability")
	out, err := cmd.CombinedOutput()
	if m := ranTests.FindSubmatch(out); m != nil {
		ran, _ = strconv.Atoi(string(m[1]))
	}
	failed := failTests.FindAllSubmatch(out, -1)
	for _, m := range failed {
		fmt.Printf("%s: %s failed\n", file, m[1])
	}
	if ran == 0 || err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s\n", file, err, out[max(0, len(out)-4000):])
	}
	return ran, ran - len(failed)
}
