//go:build !arm

// go-fuse does not build for 32-bit ARM.

package edge_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"tailrace/edge"
	"tailrace/storage/storagetest"
)

// These tests break a real file system on a loop device below a node that is taking
// publishes. They need root, loop devices and mkfs.ext4 (see storagetest.CannotMount).

// disk is a file system on a loop device whose image lies in a directory.
type disk struct {
	t          testing.TB
	image, dir string
	device     string // "loop3"
}

func newDisk(t testing.TB, image string, options ...string) *disk {
	t.Helper()
	d := &disk{t: t, image: image, dir: filepath.Join(t.TempDir(), "disk")}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d.mount(options...)
	t.Cleanup(d.unmount)
	return d
}

func (d *disk) mount(options ...string) {
	d.t.Helper()
	if out, err := exec.Command("mount", "-o", strings.Join(append([]string{"loop"}, options...), ","), d.image, d.dir).CombinedOutput(); err != nil {
		storagetest.CannotMount(d.t, "mounting an image: %v: %s", err, out)
	}
	out, err := exec.Command("findmnt", "-no", "SOURCE", d.dir).Output()
	if err != nil {
		d.t.Fatal(err)
	}
	d.device = filepath.Base(strings.TrimSpace(string(out)))
}

// unmount waits until nobody uses the file system, and until its loop device has let go of
// the image: a mount of it would otherwise find the old one again, read-only as it is.
func (d *disk) unmount() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); ; <-tick.C {
		err := syscall.Unmount(d.dir, 0)
		if errors.Is(err, syscall.EBUSY) && time.Now().Before(deadline) {
			continue
		}
		if err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: it is not mounted
			fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
			for _, fd := range fds {
				if to, _ := os.Readlink(fd); strings.HasPrefix(to, d.dir) {
					d.t.Logf("%s is %s", fd, to)
				}
			}
			d.t.Errorf("unmount: %v", err)
			syscall.Unmount(d.dir, syscall.MNT_DETACH)
			return
		}
		if out, err := exec.Command("losetup", "-j", d.image).Output(); err != nil || len(out) == 0 || time.Now().After(deadline) {
			return
		}
	}
}

// makeImage is mkfs.ext4 of size bytes with a journal.
func makeImage(t testing.TB, image string, size int64, options ...string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", append(append([]string{"-q", "-F"}, options...), image)...).CombinedOutput(); err != nil {
		storagetest.CannotMount(t, "mkfs.ext4: %v: %s", err, out)
	}
}

// crowd are devices that publish one after the other, each with a number that rises, and
// remember what they heard.
type crowd struct {
	t    *testing.T
	n    *edge.Node
	wg   sync.WaitGroup
	stop chan struct{}

	mu    sync.Mutex // guards the fields below
	acked map[string]bool
	heard map[int]int // by reason code, -1 connection ended
}

func newCrowd(t *testing.T, n *edge.Node, devices int) *crowd {
	c := &crowd{t: t, n: n, stop: make(chan struct{}), acked: map[string]bool{}, heard: map[int]int{}}
	for i := range devices {
		p := client(t, n, fmt.Sprint("crowd", i))
		c.wg.Go(func() { c.run(p, i) })
	}
	return c
}

func (c *crowd) run(p *paho.Client, device int) {
	for k, life := 0, 0; ; k++ {
		select {
		case <-c.stop:
			return
		default:
		}
		body := fmt.Sprintf("%d-%d", device, k)
		r, _ := p.Publish(c.t.Context(), &paho.Publish{Topic: "a", QoS: 1, Payload: []byte(body)})
		c.mu.Lock()
		switch {
		case r == nil:
			c.heard[-1]++
		default:
			c.heard[int(r.ReasonCode)]++
			c.acked[body] = c.acked[body] || r.ReasonCode == 0
		}
		c.mu.Unlock()
		if r == nil {
			life++
			if p = c.again(fmt.Sprintf("crowd%d-%d", device, life)); p == nil {
				return
			}
		} else if r.ReasonCode != 0 { // as a device that backs off
			select {
			case <-c.stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// again connects anew, as often as it takes: a session needs the disk, too.
func (c *crowd) again(id string) *paho.Client {
	for {
		p, err := dial(c.n, id)
		if err == nil {
			c.t.Cleanup(func() { p.Disconnect(&paho.Disconnect{}) })
			return p
		}
		c.mu.Lock()
		c.heard[-1]++
		c.mu.Unlock()
		select {
		case <-c.stop:
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// counts are how often was acknowledged and how often something else was heard.
func (c *crowd) counts() (acked, reason, ended int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heard[0], c.heard[0x83], c.heard[-1]
}

func (c *crowd) end() {
	close(c.stop)
	c.wg.Wait()
}

// judge: what was acknowledged is there once, what was refused is not.
func (c *crowd) judge(n *edge.Node) {
	c.t.Helper()
	seen := map[string]int{}
	for _, v := range values(c.t, n, "s") {
		seen[v]++
	}
	for v, ok := range c.acked {
		if ok && seen[v] != 1 {
			c.t.Errorf("acknowledged %q is there %d times", v, seen[v])
		}
		if !ok && seen[v] != 0 {
			c.t.Errorf("refused %q is there", v)
		}
	}
}

// TestEveryWriteFails: the block device answers writes of data with EIO, and later is well
// again, as device-mapper's error target would. (The image of the file system is a file of
// FUSE, which needs no module.)
func TestEveryWriteFails(t *testing.T) {
	base := t.TempDir()
	image := filepath.Join(base, "image")
	makeImage(t, image, 24<<20, "-b", "4096")
	bad := newBadDisk(t, image)
	d := newDisk(t, bad.path)
	n, _ := nodeOnBadDisk(t, d.dir)
	quiet := client(t, n, "quiet")
	c := newCrowd(t, n, 4)
	until(t, "publishes are acknowledged", func() bool { a, _, _ := c.counts(); return a > 50 })
	if out, err := exec.Command("sync", "-f", d.dir).CombinedOutput(); err != nil { // the directories are there
		t.Fatalf("sync: %v: %s", err, out)
	}

	bad.failing.Store(true)
	until(t, "publishes are refused or get no answer", func() bool { _, r, e := c.counts(); return r+e >= 20 })
	if r := publish(t, quiet, "a", "quiet"); r != 0x83 {
		t.Errorf("a device that had nothing under way hears 0x%02X, want 0x83", r)
	}
	until(t, "the alarm is on", func() bool { return alarm(t, n, "disk_error").Kind != "" })
	if a := alarm(t, n, "disk_error"); a.Class != "main" || !strings.Contains(a.Message, "input/output error") {
		t.Errorf("alarm %+v", a)
	}
	if _, m := get(t, n, "/metrics"); !strings.Contains(m, `tailrace_alarm{alarm="disk_error",class="main"} 1`) {
		t.Error("the metrics do not show the alarm")
	}
	if code, _ := get(t, n, "/healthz"); code != http.StatusOK {
		t.Errorf("the node is said to be dead: %d", code)
	}
	if bad.refused.Load() == 0 {
		t.Error("the disk refused nothing")
	}

	bad.failing.Store(false)
	before, _, _ := c.counts()
	until(t, "publishes are acknowledged again", func() bool { a, _, _ := c.counts(); return a > before+50 })
	until(t, "the alarm is over", func() bool { return alarm(t, n, "disk_error").Kind == "" })
	c.end()
	c.acked["quiet"] = false
	c.judge(n)
}

// badDisk is a file with the content of an image. While failing is set, it refuses to write
// blocks that the file system counted as free: its own metadata, journal among it, can be
// written, else it would give up for good.
type badDisk struct {
	path    string
	failing atomic.Bool
	refused atomic.Int64
}

func newBadDisk(t testing.TB, image string) *badDisk {
	t.Helper()
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	d, free, dir := &badDisk{}, freeBlocks(t, image), filepath.Join(t.TempDir(), "fuse")
	path, unmount, err := storagetest.MountFuseDisk(dir, data, &storagetest.FuseDisk{Write: func(off int64, b []byte) syscall.Errno {
		end := off + int64(len(b))
		if d.failing.Load() && slices.ContainsFunc(free, func(r [2]int64) bool { return off < r[1] && end > r[0] }) {
			d.refused.Add(1)
			return syscall.EIO
		}
		return 0
	}})
	if err != nil {
		storagetest.CannotMount(t, "mounting FUSE: %v", err)
	}
	t.Cleanup(func() {
		if err := unmount(); err != nil { // the loop device goes a moment later than its file system
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	d.path = path
	return d
}

// freeBlocks are the byte ranges that dumpe2fs calls free.
func freeBlocks(t testing.TB, image string) (free [][2]int64) {
	t.Helper()
	out, err := exec.Command("dumpe2fs", image).Output()
	if err != nil {
		storagetest.CannotMount(t, "dumpe2fs: %v", err)
	}
	for _, line := range regexp.MustCompile(`(?m)^  Free blocks: (.+)$`).FindAllSubmatch(out, -1) {
		for _, r := range strings.Split(string(line[1]), ", ") {
			var from, to int64
			switch n, _ := fmt.Sscanf(r, "%d-%d", &from, &to); n {
			case 0:
				t.Fatalf("free blocks %q", r)
			case 1:
				to = from
			}
			free = append(free, [2]int64{from * 4096, (to + 1) * 4096})
		}
	}
	return free
}

// TestFileSystemTurnsReadOnly: ext4 meets an error and makes itself read-only (mount option
// errors=remount-ro, Debian's default for the root file system). Only a mount anew, and so
// a restart, makes it writable again; until then devices are refused, what is stored can be
// read, and the alarm is on. (An administrator's "mount -o remount,ro" is refused by the
// kernel while the node has its log open.)
func TestFileSystemTurnsReadOnly(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	makeImage(t, image, 32<<20)
	d := newDisk(t, image, "errors=remount-ro")
	n, stop := nodeOnBadDisk(t, d.dir)
	quiet := client(t, n, "quiet")
	c := newCrowd(t, n, 4)
	until(t, "publishes are acknowledged", func() bool { a, _, _ := c.counts(); return a > 50 })
	if out, err := exec.Command("mount", "-o", "remount,ro", d.dir).CombinedOutput(); err == nil {
		t.Errorf("remounted read-only below an open log: %s", out)
	}
	if err := os.WriteFile(filepath.Join("/sys/fs/ext4", d.device, "trigger_fs_error"), []byte("test\n"), 0); err != nil {
		storagetest.CannotMount(t, "make ext4 meet an error: %v", err)
	}
	until(t, "publishes are refused or get no answer", func() bool { _, r, e := c.counts(); return r+e >= 20 })
	if r := publish(t, quiet, "a", "quiet"); r != 0x83 {
		t.Errorf("a device that had nothing under way hears 0x%02X, want 0x83", r)
	}
	if a := alarm(t, n, "disk_error"); a.Class != "main" || !strings.Contains(a.Message, "read-only") {
		t.Errorf("alarm %+v", a)
	}
	if _, m := get(t, n, "/metrics"); !strings.Contains(m, `tailrace_alarm{alarm="disk_error",class="main"} 1`) {
		t.Error("the metrics do not show the alarm")
	}
	if code, _ := get(t, n, "/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("ready on a read-only disk: %d", code)
	}
	c.end()
	c.acked["quiet"] = false
	c.judge(n) // and readable
	if err := stop(); !errors.Is(err, syscall.EROFS) {
		t.Errorf("Run: %v", err)
	}

	d.unmount()
	if out, err := exec.Command("e2fsck", "-p", image).CombinedOutput(); err != nil && err.(*exec.ExitError).ExitCode() > 1 {
		t.Fatalf("e2fsck: %v: %s", err, out)
	}
	d.mount("errors=remount-ro")
	n, _ = nodeOn(t, plain+"default: {stream: s}\n", d.dir, nil)
	c.judge(n)
	if r := publish(t, client(t, n, "late"), "a", "late"); r != 0 {
		t.Errorf("after the mount: 0x%02X", r)
	}
	if a := alarm(t, n, "disk_error"); a.Kind != "" {
		t.Errorf("alarm %+v", a)
	}
}

// nodeOnBadDisk is nodeOn for a node whose Run may end with an error.
func nodeOnBadDisk(t *testing.T, dir string) (n *edge.Node, stop func() error) {
	t.Helper()
	c, err := edge.ParseConfig(strings.NewReader(strings.ReplaceAll(plain+"default: {stream: s}\n", "%DIR%", dir)))
	if err != nil {
		t.Fatal(err)
	}
	c.ShutdownTimeout = 5 * time.Second
	if n, err = edge.New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { stop() })
	select {
	case <-n.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("node is not ready")
	}
	return n, stop
}

// dial is client for a node that may refuse.
func dial(n *edge.Node, id string) (*paho.Client, error) {
	conn, err := net.Dial("tcp", n.MQTTAddrs()[0].String())
	if err != nil {
		return nil, err
	}
	p := paho.NewClient(paho.ClientConfig{Conn: conn})
	expiry := uint32(3600)
	if _, err := p.Connect(context.Background(), &paho.Connect{ClientID: id, KeepAlive: 30, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry}}); err != nil {
		conn.Close()
		return nil, err
	}
	return p, nil
}
