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
//
// The suites' client gives each byte of an answer 0.3 s, which a fsync on a busy machine can
// exceed, and a test that breaks off leaves its retained messages to the next. So what has
// failed runs a second time, by itself; a fault of the server fails again.
func runPaho(python, dir, file string, want int, addr, refusing string) bool {
	ran, passed := 0, 0
	parts := map[string]string{"others": addr, "refused": refusing}
	if refusing == "" {
		parts = map[string]string{"all": addr}
	}
	again := 0
	for part, at := range parts {
		r, failed := runPahoPart(python, dir, file, part, at)
		for _, name := range failed {
			if n, f := runPahoPart(python, dir, file, name, at); n == 1 && len(f) == 0 {
				fmt.Printf("%s: %s passed at the second try\n", file, name)
				again++
				passed++
			}
		}
		ran, passed = ran+r, passed+r-len(failed)
	}
	fmt.Printf("paho.mqtt.testing %s: %d of %d", file, passed, ran)
	if again > 0 {
		fmt.Printf(" (%d at the second try)", again)
	}
	fmt.Println()
	return passed >= want
}

// runPahoPart runs all tests, the part "others" or "refused", or one by its name.
func runPahoPart(python, dir, file, part, addr string) (ran int, failed []string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 0, nil
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
suite = unittest.TestSuite(t for t in unittest.defaultTestLoader.loadTestsFromTestCase(m.Test) if sys.argv[4] in ('all', t._testMethodName) or sys.argv[4] == ('refused' if t._testMethodName == 'test_subscribe_failure' else 'others'))
sys.exit(not unittest.TextTestRunner(stream=sys.stderr, verbosity=2).run(suite).wasSuccessful())
`
	cmd := exec.CommandContext(ctx, python, "-c", driver, strings.TrimSuffix(file, ".py"), host, port, part)
	cmd.Dir = filepath.Join(dir, "interoperability")
	out, err := cmd.CombinedOutput()
	if m := ranTests.FindSubmatch(out); m != nil {
		ran, _ = strconv.Atoi(string(m[1]))
	}
	for _, m := range failTests.FindAllSubmatch(out, -1) {
		fmt.Printf("%s: %s failed\n", file, m[1])
		failed = append(failed, string(m[1]))
	}
	if ran == 0 || err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s\n", file, err, out[max(0, len(out)-4000):])
	}
	return ran, failed
}
