package planted

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace/storage/storagetest"
)

var (
	all  = flag.Bool("all", false, "plant every bug, not two")
	only = flag.String("bug", "", "plant the bugs whose name contains this")
)

// bug is one planted fault. old stands exactly once in file.
type bug struct {
	name     string
	file     string // below the module's root
	old, new string
	pkg      string
	test     string // must fail
}

var bugs = []bug{
	{
		name: "ack before sync", file: "storage/commit.go",
		old: "if err := c.tail.Sync(); err != nil {",
		new: "if err := error(nil); err != nil {",
		pkg: "./storage/storagetest", test: "TestPowerCutsLoseNothingAcknowledged",
	},
	{
		name: "retry fsync", file: "storage/commit.go",
		old: "if err := c.tail.Sync(); err != nil {",
		new: "if err := c.tail.Sync(); err != nil && c.tail.Sync() != nil {",
		pkg: "./storage/storagetest", test: "TestNoAckAfterAFailedCall",
	},
	{
		name: "skip CRC", file: "storage/envelope.go",
		old: "binary.BigEndian.Uint32(b[8:]); sum != want {",
		new: "binary.BigEndian.Uint32(b[8:]); false && sum != want {",
		pkg: "./storage/storagetest", test: "TestFlipsAndCutsOfASegment",
	},
	{
		name: "trust length", file: "storage/scan.go",
		old: "n < envelopeBytes || n > uint64(len(data)-pos-w) || n > maxEntryBytes {",
		new: "n < envelopeBytes || n > maxEntryBytes {",
		pkg: "./storage/storagetest", test: "TestFlipsAndCutsOfASegment",
	},
	{
		name: "drop 1 in 100,000", file: "storage/encode.go",
		old: "\t\tb := p.build\n",
		new: "\t\tif planted++; planted%100000 == 0 {\n\t\t\tcontinue\n\t\t}\n\t\tb := p.build\n",
		pkg: "./firmware-sim/scenario", test: "TestLinkDownTenMinutes",
	},
	{
		name: "resend as new", file: "uplink/hub/stream.go",
		old: "missing := pend.Missing(from, to)",
		new: "missing := uplink.RangeSet{{From: from, To: to}}",
		pkg: "./uplink/hub", test: "TestExactlyOnceThroughPowerCuts",
	},
	{
		name: "swap after reconnect", file: "uplink/hub/stream.go",
		old: "\tst.taken += uint64(n)\n",
		new: "\tif st.taken == 0 && n > 1 {\n\t\ttake[0], take[1] = take[1], take[0]\n\t}\n\tst.taken += uint64(n)\n",
		pkg: "./uplink/hub", test: "TestExactlyOnceThroughPowerCuts",
	},
	{
		name: "free before hub ack", file: "storage/budget.go",
		old: "if !lose && !acked {",
		new: "if !lose && !acked && need < 0 {",
		pkg: "./storage", test: "TestRejectRefusesUntilTheHubHasIt",
	},
	{
		name: "cursor ahead of data", file: "uplink/hub/build.go",
		old: "\ta.Set(storage.KindProgress, st.name, s.value)\n",
		new: "\tearly, stored := e.store.NewAppend(st.assign.Class), make(chan struct{})\n" +
			"\tearly.Set(storage.KindProgress, st.name, s.value)\n" +
			"\te.store.Submit(early, func(*storage.Append, error) { close(stored) })\n\t<-stored\n",
		pkg: "./uplink/hub", test: "TestExactlyOnceThroughPowerCuts",
	},
	{
		name: "lose epoch at clone", file: "uplink/hub/fence.go",
		old: "if n.ID == k.ID || n.Parent == k.ID && !k.ID.IsZero() {",
		new: "if n.ID == k.ID && n.Parent == k.ID {",
		pkg: "./uplink/hub", test: "TestOnlyTheLogThatTheHubKnowsGoesOn",
	},
	{
		name: "order by wall clock", file: "storage/commit.go",
		old: "\tc.take()\n",
		new: "\tc.take()\n\tstamp := func(i int) int64 {\n\t\tif a := c.group[i].a; len(a.items) > 0 {\n\t\t\treturn a.items[0].ts\n\t\t}\n\t\treturn 0\n\t}\n" +
			"\tfor i := range c.group {\n\t\tfor j := i; j > 0 && stamp(j) < stamp(j-1); j-- {\n\t\t\tc.group[j], c.group[j-1] = c.group[j-1], c.group[j]\n\t\t}\n\t}\n",
		pkg: "./storage/storagetest", test: "TestPowerCutsLoseNothingAcknowledged",
	},
	{
		name: "silent overwrite", file: "storage/budget.go",
		old: "if from := max(p.Start(), p.acked.Load()); from < off {",
		new: "if from := max(p.Start(), p.acked.Load()); from < 0 {",
		pkg: "./storage", test: "TestDropOldestDeclaresWhatGoes",
	},
	// Beside the twelve.
	{
		name: "restored hub taken for the old", file: "uplink/hub/sink.go",
		old: "if h.Store == nil || s.h.clustered() {",
		new: "if h.Store == nil || s.h.clustered() || h.Store != nil {",
		pkg: "./firmware-sim/scenario", test: "TestHistoriesOfAReplacedHub",
	},
	{
		name: "copy ahead of the hub not compared", file: "uplink/sender.go",
		old: "if err != nil || x.Base != w.last.Offset || x.CRC != w.last.CRC {",
		new: "if err != nil {",
		pkg: "./firmware-sim/scenario", test: "TestCopiesOfALogAreNeverMerged/older_copy_that_has_overtaken_the_hub",
	},
	{
		name: "epoch of a copy ignored", file: "uplink/hub/fence.go", // "lose epoch at clone", end to end
		old: "if n.ID == k.ID || n.Parent == k.ID && !k.ID.IsZero() {",
		new: "if n.ID == k.ID && n.Parent == k.ID {",
		pkg: "./firmware-sim/scenario", test: "TestCopiesOfALogAreNeverMerged/copy_with_an_epoch_of_its_own,_the_node_has_another",
	},
	{
		name: "file that is gone not declared", file: "storage/attach.go",
		old: "ops := append(l.declare(lost, LossDamaged, parts), l.declare(unreadable, LossUnreadable, parts)...)",
		new: "ops := append(l.declare(nil, LossDamaged, parts), l.declare(unreadable, LossUnreadable, parts)...)",
		pkg: "./storage", test: "TestMissingSegmentsAreDeclaredExactly",
	},
	{
		name: "progress lost with its entry", file: "uplink/hub/reconcile.go",
		old: "\tif !damaged {\n",
		new: "\tif damaged || !damaged {\n",
		pkg: "./firmware-sim/scenario", test: "TestRottenStateLosesAndDoublesNothing",
	},
}

// named are the bugs that the promise of the log names; beside are the others.
var (
	named = []string{"ack before sync", "retry fsync", "skip CRC", "trust length", "drop 1 in 100,000", "resend as new",
		"swap after reconnect", "free before hub ack", "cursor ahead of data", "lose epoch at clone", "order by wall clock", "silent overwrite"}
	beside = []string{"restored hub taken for the old", "copy ahead of the hub not compared", "epoch of a copy ignored",
		"file that is gone not declared", "progress lost with its entry"}
)

// more is what a bug adds to its file besides the edit.
var more = map[string]string{"drop 1 in 100,000": "\nvar planted int64 // racy, as a bug may be\n"}

// Each planted bug is found by the test that is named for it: a check that passes whatever
// the code does proves nothing.
func TestPlantedBugsAreFound(t *testing.T) {
	chosen := bugs
	switch rot := int(storagetest.Rotation() % uint64(len(bugs))); {
	case *only != "":
		chosen = nil
		for _, b := range bugs {
			if strings.Contains(b.name, *only) {
				chosen = append(chosen, b)
			}
		}
	case *all:
	case testing.Short():
		t.Skip("the short form plants nothing: each bug is a build of its own")
	default:
		chosen = []bug{bugs[rot], bugs[(rot+len(bugs)/2)%len(bugs)]}
	}
	if len(chosen) == 0 {
		t.Fatalf("no bug is named like %q", *only)
	}
	for _, b := range chosen {
		t.Run(strings.ReplaceAll(b.name, " ", "-"), func(t *testing.T) { plant(t, b) })
	}
}

// The whole table fits the code, also the rows that are not planted today.
func TestTheTableFitsTheCode(t *testing.T) {
	root := moduleRoot(t)
	for _, b := range bugs {
		if _, err := edited(root, b); err != nil {
			t.Error(err)
		}
	}
	var have []string
	for _, b := range bugs {
		have = append(have, b.name)
	}
	if want := slices.Concat(named, beside); len(named) != 12 || !slices.Equal(have, want) {
		t.Errorf("the table has %q, want %q", have, want)
	}
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

func edited(root string, b bug) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, b.file))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(text), b.old); n != 1 {
		return "", fmt.Errorf("bug %q: the text to replace stands %d times in %s, it must stand there once: mend the table (%q)", b.name, n, b.file, b.old)
	}
	return strings.Replace(string(text), b.old, b.new, 1) + more[b.name], nil
}

func plant(t *testing.T, b bug) {
	root, base := moduleRoot(t), os.TempDir()
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm" // thousands of small files
	}
	dir, err := os.MkdirTemp(base, "planted-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	text, err := edited(root, b)
	if err != nil {
		t.Fatal(err)
	}
	fake, overlay := filepath.Join(dir, "planted.go"), filepath.Join(dir, "overlay.json")
	table, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, b.file): fake}})
	if err == nil {
		err = errors.Join(os.WriteFile(fake, []byte(text), 0o600), os.WriteFile(overlay, table, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-overlay", overlay}, args...)...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "TMPDIR="+dir, "GOTMPDIR="+os.TempDir())
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// A bug that does not build finds nothing.
	if out, err := run("-count=1", "-run", "^$", b.pkg); err != nil {
		t.Fatalf("the planted code does not build: %v\n%s", err, out)
	}
	start := time.Now()
	out, err := run("-count=1", "-short", "-timeout", "8m", "-run", "^"+b.test+"$", b.pkg)
	if ctx.Err() != nil {
		t.Fatalf("no verdict in time\n%s", tail(out))
	}
	if err == nil {
		t.Fatalf("%s %s passes with the bug %q in %s", b.pkg, b.test, b.name, b.file)
	}
	if !strings.Contains(out, "--- FAIL: "+b.test) && !strings.Contains(out, "panic: ") {
		t.Fatalf("%s did not fail, something else did:\n%s", b.test, tail(out))
	}
	t.Logf("found by %s in %v: %s", b.test, time.Since(start).Round(100*time.Millisecond), reason(out))
}

// reason is the first line that says what a test found.
func reason(out string) string {
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.Contains(line, "_test.go:") && !strings.Contains(line, " in ") && !strings.Contains(line, "calls of") || strings.HasPrefix(line, "panic: ") {
			return line[:min(len(line), 200)]
		}
	}
	return ""
}

func tail(s string) string { return s[max(len(s)-4000, 0):] }
