//go:build !arm

package edge_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"tailrace/storage/storagetest"
)

// TestCommitsStayFastCommits: on ext4 with fast_commit nothing that a node does while it takes
// publishes makes the journal commit in full, which costs the flash twice as much: no
// attribute is changed, nothing is renamed across, no directory is made.
func TestCommitsStayFastCommits(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	makeImage(t, image, 64<<20, "-O", "fast_commit")
	d := newDisk(t, image)
	info := filepath.Join("/proc/fs/ext4", d.device, "fc_info")
	if _, err := os.Stat(info); err != nil {
		storagetest.CannotMount(t, "ext4 does not tell of fast commits: %v", err)
	}
	n, stop := nodeOn(t, strings.Replace(plain, "commit_interval: 0s", "commit_interval: 1ms", 1)+"default: {stream: s}\n", d.dir, nil)
	defer stop()
	p := client(t, n, "c")
	work := func(k int) {
		for i := range k {
			if r, err := p.Publish(t.Context(), &paho.Publish{Topic: "a", QoS: 1, Payload: fmt.Append(nil, "payload ", i)}); err != nil || r.ReasonCode != 0 {
				t.Fatal(r, err)
			}
		}
	}
	work(20) // topics, session, window: what is made once
	fast, reasons, _ := fastCommits(t, info)
	const commits = 100
	work(commits)
	f, r, all := fastCommits(t, info)
	// The journal makes a full commit every 5 s, and when the blocks for fast ones are used up.
	if r > reasons || f-fast < commits*8/10 {
		t.Errorf("%d publishes, one after the other: %d fast commits, %d reasons against one\n%s", commits, f-fast, r-reasons, all)
	}
}

var (
	fcCommits = regexp.MustCompile(`(?m)^(\d+) commits$`)
	fcReason  = regexp.MustCompile(`(?m)^".*":\s*(\d+)$`)
)

// fastCommits reads how many there were since the mount, and how often one could not be.
func fastCommits(t *testing.T, info string) (fast, reasons int, all string) {
	t.Helper()
	b, err := os.ReadFile(info)
	if err != nil {
		t.Fatal(err)
	}
	m := fcCommits.FindSubmatch(b)
	if m == nil {
		t.Fatalf("fc_info: %q", b)
	}
	fast, _ = strconv.Atoi(string(m[1]))
	for _, m := range fcReason.FindAllSubmatch(b, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		reasons += n
	}
	return fast, reasons, string(b)
}
