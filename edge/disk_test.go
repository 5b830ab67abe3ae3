package edge_test

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/eclipse/paho.golang/paho"

	"tailrace/storage/storagetest"
)

func crashFS(t *testing.T, dir string) *storagetest.CrashFS {
	t.Helper()
	fs, err := storagetest.NewCrashFS(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fs.Close() })
	return fs
}

// What survives is decided by fsync alone here: the image of a power cut keeps what
// was synced, plus whatever the seed lets the disk have written by itself.
func TestAckWaitsForFsync(t *testing.T) {
	survivors := func(lying bool) (acked, lost int) {
		dir := t.TempDir()
		fs := crashFS(t, dir)
		n, stop := nodeOn(t, plain+"default: {stream: s}\n", dir, fs)
		p := client(t, n, "d")
		publish(t, p, "a", "first") // the topic exists
		fs.Lie(storagetest.Sync, lying)
		fs.Lie(storagetest.SyncDir, lying)
		for i := range 40 {
			if r := publish(t, p, "a", fmt.Sprint(i)); r != 0 {
				t.Fatalf("publish %d: 0x%02X", i, r)
			}
			acked++
			if i%8 != 7 {
				continue
			}
			after := t.TempDir()
			if _, err := fs.Image(uint64(i), filepath.Join(after, "data")); err != nil {
				t.Fatal(err)
			}
			m, end := stoppableNode(t, plain+"default: {stream: s}\n", after)
			got := map[string]bool{}
			for _, v := range values(t, m, "s") {
				got[v] = true
			}
			for k := range i + 1 {
				if !got[fmt.Sprint(k)] {
					lost++
				}
			}
			end()
		}
		p.Disconnect(&paho.Disconnect{})
		stop()
		return acked, lost
	}
	if acked, lost := survivors(false); lost > 0 {
		t.Errorf("%d of %d acknowledged records did not survive a power cut", lost, acked)
	}
	// The control: on a disk that lies about its flushes the same check must see losses.
	if _, lost := survivors(true); lost == 0 {
		t.Error("the check does not notice a disk that never syncs: it proves nothing")
	}
}

func TestADiskErrorIsToldAndTheNodeGoesOn(t *testing.T) {
	dir := t.TempDir()
	fs := crashFS(t, dir)
	n, _ := nodeOn(t, plain+"default: {stream: s}\n", dir, fs)
	p := client(t, n, "d")
	acked := map[string]bool{}
	try := func(body string) byte {
		r := publish(t, p, "a", body)
		if r == 0 {
			acked[body] = true
		}
		return r
	}
	if r := try("before"); r != 0 {
		t.Fatalf("0x%02X", r)
	}
	fired := fs.Inject(storagetest.Fault{Call: storagetest.Sync, Err: syscall.EIO})
	if r := try("during"); r != 0x83 {
		t.Fatalf("reason 0x%02X for a failed fsync, want 0x83", r)
	}
	if fired() != 1 {
		t.Fatalf("the fault fired %d times", fired())
	}
	fs.Heal()
	after := -1
	until(t, "the node takes something again", func() bool { after++; return try(fmt.Sprint("after ", after)) == 0 })
	seen := map[string]int{}
	for _, v := range values(t, n, "s") {
		seen[v]++
	}
	for v := range acked {
		if seen[v] != 1 {
			t.Errorf("acknowledged %q is there %d times", v, seen[v])
		}
	}
	if seen["during"] != 0 {
		t.Error("a refused record was stored: its re-send would be the second")
	}
}
