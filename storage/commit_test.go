package storage_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage"
)

func inLog(name string) bool { return filepath.Base(filepath.Dir(name)) == "log" }

// TestAckWaitsForFsync: until the fsync of the segment returns, done is not called
// and nothing is visible.
func TestAckWaitsForFsync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &testFS{}
		s := open(t, t.TempDir(), onFS(fs))
		p := topic(t, s, "wind", 1).Partition(0)
		syncing, release := make(chan struct{}, 1), make(chan struct{})
		fs.setHook(func(op, name string) error {
			if op == "sync" && inLog(name) {
				syncing <- struct{}{}
				<-release
			}
			return nil
		})
		done := make(chan error, 1)
		a := s.NewAppend("")
		a.Record(p, 1, nil, []byte("v"), nil)
		a.Set(storage.KindMeta, "k", []byte("v"))
		s.Submit(a, func(_ *storage.Append, err error) { done <- err })
		<-syncing
		synctest.Wait() // everything that could go on has
		_, state := s.State(storage.KindMeta, "k")
		early := len(done) != 0 || p.HighWatermark() != 0 || state || len(readAll(t, p, 0)) != 0
		fs.setHook(nil)
		close(release)
		if early {
			t.Fatal("answered or visible before the fsync")
		}
		if err := <-done; err != nil || p.HighWatermark() != 1 {
			t.Fatal(err, p.HighWatermark())
		}
		s.Close()
	})
}

// TestDoneComesInOrder of submission, each once, under many submitters.
func TestDoneComesInOrder(t *testing.T) {
	s := open(t, t.TempDir(), onFS(&testFS{}))
	p := topic(t, s, "wind", 1).Partition(0)
	var mu sync.Mutex // submission order is known under it
	var submitted, answered []int
	var wg sync.WaitGroup
	for g := range 8 {
		for i := range 50 {
			wg.Add(1)
			go func() {
				a := s.NewAppend("")
				a.Record(p, int64(i), nil, []byte("v"), nil)
				mu.Lock()
				submitted = append(submitted, g*50+i)
				s.Submit(a, func(*storage.Append, error) {
					answered = append(answered, g*50+i) // one goroutine: the committer
					wg.Done()
				})
				mu.Unlock()
			}()
		}
	}
	wg.Wait()
	if fmt.Sprint(submitted) != fmt.Sprint(answered) {
		t.Fatalf("submitted %v\nanswered %v", submitted, answered)
	}
}

// TestFailedFsyncIsNeverRetried: everyone who waits is told, nothing of it is
// readable then or after a reopen, the same descriptor is never synced again, and
// the log goes on.
func TestFailedFsyncIsNeverRetried(t *testing.T) {
	for _, op := range []string{"sync", "syncdir", "open", "alive"} {
		t.Run(op, func(t *testing.T) {
			fs := &testFS{}
			dir := t.TempDir()
			s := open(t, dir, onFS(fs), segmentBytes(4096))
			p := topic(t, s, "wind", 1).Partition(0)
			put(t, s, p, 1, "before")
			want := fmt.Sprint(readAll(t, p, 0))
			var failed atomic.Bool
			fs.setHook(func(o, name string) error {
				// syncdir and open happen at the roll that the large record causes
				if o == op && strings.Contains(name, "/log") && failed.CompareAndSwap(false, true) {
					return syscall.EIO
				}
				return nil
			})
			a := s.NewAppend("")
			a.Record(p, 1, nil, make([]byte, 5000), nil)
			err := s.Commit(t.Context(), a)
			var de *storage.DiskError
			if !errors.As(err, &de) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("error %v", err)
			}
			if got := fmt.Sprint(readAll(t, p, 0)); got != want || p.Next() != 1 {
				t.Fatalf("after the failure: %v", got)
			}
			put(t, s, p, 2, "after")
			want = fmt.Sprint(readAll(t, p, 0))
			if r := readAll(t, p, 1); len(r) != 1 || r[0].Value != "after" || r[0].Offset != 1 {
				t.Fatalf("after the reopen: %v", r)
			}
			if st := s.Stats().Classes[0]; st.Failures != 1 || st.Broken != nil {
				t.Fatalf("stats %+v", st)
			}
			s.Close()
			s = open(t, dir, onFS(fs), segmentBytes(4096))
			tp, _ := s.Topic("wind")
			if got := fmt.Sprint(readAll(t, tp.Partition(0), 0)); got != want || repairs(s) != "" {
				t.Fatalf("reopened: %v, repairs %q", got, repairs(s))
			}
			plainRead(t, dir)
		})
	}
}

// TestFsyncsAreBelievedWhenAllAreDone: whether the journal is still there is asked after the
// last fsync of a commit, of a directory among them, and before anybody hears of it; and
// after those that opening the log relies on.
func TestFsyncsAreBelievedWhenAllAreDone(t *testing.T) {
	fs := &testFS{}
	dir := t.TempDir()
	s := open(t, dir, onFS(fs), segmentBytes(4096))
	p := topic(t, s, "wind", 1).Partition(0)
	fs.mu.Lock()
	fs.rec = true
	fs.mu.Unlock()
	commit := func(size int) (calls []string, err error) {
		fs.mu.Lock()
		fs.log = nil
		fs.mu.Unlock()
		a := s.NewAppend("")
		a.Record(p, 1, nil, make([]byte, size), nil)
		done := make(chan error)
		s.Submit(a, func(_ *storage.Append, err error) {
			fs.mu.Lock()
			calls = slices.DeleteFunc(slices.Clone(fs.log), func(call string) bool { return call == "sync twin" }) // a copy, behind it
			fs.mu.Unlock()
			done <- err
		})
		err = <-done
		return calls, err
	}
	for _, size := range []int{5000, 1} {
		calls, err := commit(size)
		if n := len(calls); err != nil || n < 2 || !strings.HasPrefix(calls[n-1], "alive ") || size > 4096 && calls[n-2] != "syncdir log" {
			t.Errorf("a record of %d bytes: %q, %v", size, calls, err)
		}
	}
	fs.setHook(func(op, _ string) error {
		if op == "alive" {
			return syscall.EROFS
		}
		return nil
	})
	if _, err := commit(1); !errors.Is(err, storage.ErrUncertain) || !errors.Is(err, syscall.EROFS) {
		t.Errorf("a commit when the journal is gone: %v", err)
	}
	s.Close()
	if s, err := storage.Open(storage.Config{Dir: dir, FS: fs, NodeID: "n1", Classes: []storage.ClassConfig{{Name: "main"}}}); !errors.Is(err, syscall.EROFS) {
		t.Errorf("open: %v", err)
		if err == nil {
			s.Close()
		}
	}
}

// TestOneFailedCommitIsSaid: a disk that fails a commit and then opens the log anew is not
// well before a commit succeeds.
func TestOneFailedCommitIsSaid(t *testing.T) {
	fs := &testFS{}
	s := open(t, t.TempDir(), onFS(fs))
	p := topic(t, s, "wind", 1).Partition(0)
	var once sync.Once
	fs.setHook(func(op, _ string) (err error) {
		if op == "sync" {
			once.Do(func() { err = syscall.EIO })
		}
		return err
	})
	a := s.NewAppend("")
	a.Record(p, 1, nil, []byte("v"), nil)
	if err := s.Commit(t.Context(), a); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if c := s.Stats().Classes[0]; !errors.Is(c.Failing, syscall.EIO) || c.Broken != nil {
		t.Errorf("failing %v, broken %v", c.Failing, c.Broken)
	}
	put(t, s, p, 1, "v")
	if c := s.Stats().Classes[0]; c.Failing != nil || c.PayloadBytes != 1 || c.Records != 1 {
		t.Errorf("after a commit of 1 byte: failing %v, %d bytes in %d records", c.Failing, c.PayloadBytes, c.Records)
	}
}

// TestFailingDiskIsAskedAgainLater: while the disk fails appends are refused, and
// the log comes back on its own when the disk does.
func TestFailingDiskIsAskedAgainLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &testFS{}
		s := open(t, t.TempDir(), onFS(fs))
		p := topic(t, s, "wind", 1).Partition(0)
		fs.setHook(func(op, name string) error {
			if op == "sync" || op == "truncate" {
				return syscall.EIO
			}
			return nil
		})
		commit := func() error {
			a := s.NewAppend("")
			a.Record(p, 1, nil, []byte("v"), nil)
			return s.Commit(t.Context(), a)
		}
		for range 5 {
			if err := commit(); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
		}
		if s.Stats().Classes[0].Broken == nil {
			t.Fatal("not said to be broken")
		}
		fs.setHook(nil)
		time.Sleep(31 * time.Second)
		if err := commit(); err != nil || p.HighWatermark() != 1 {
			t.Fatal(err, p.HighWatermark())
		}
		s.Close()
	})
}

// TestCommitRule: the first append after idle at once, others at most every
// interval, or when enough bytes wait.
func TestCommitRule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), onFS(&testFS{}), func(c *storage.Config) {
			c.Classes[0].CommitInterval, c.Classes[0].CommitBytes = time.Second, 10_000
		})
		p := topic(t, s, "wind", 1).Partition(0)
		time.Sleep(time.Minute)
		start := time.Now()
		at := make(map[string]time.Duration)
		submit := func(name string, n int) {
			a := s.NewAppend("")
			a.Record(p, 1, nil, make([]byte, n), nil)
			s.Submit(a, func(*storage.Append, error) { at[name] = time.Since(start) })
		}
		submit("first", 10)
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		submit("second", 10)
		time.Sleep(300 * time.Millisecond)
		submit("third", 10)
		time.Sleep(2 * time.Second)
		submit("idle", 10)
		synctest.Wait()
		submit("large", 20_000)
		synctest.Wait()
		want := map[string]time.Duration{"first": 0, "second": time.Second, "third": time.Second, "idle": 2400 * time.Millisecond, "large": 2400 * time.Millisecond}
		if fmt.Sprint(at) != fmt.Sprint(want) {
			t.Fatalf("got %v\nwant %v", at, want)
		}
		s.Close()
	})
}

// TestTopicsDoNotWaitForTheCommitInterval: a hundred new topics, made one after the
// other as a node's first publishes make them, need no hundred intervals.
func TestTopicsDoNotWaitForTheCommitInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), onFS(&testFS{}), func(c *storage.Config) { c.Classes[0].CommitInterval = time.Minute })
		start := time.Now()
		var waited *storage.Append
		for i := range 100 {
			tp := topic(t, s, fmt.Sprint("wind-", i), 1)
			if i == 50 { // what waits already shares the next topic's commit
				waited = s.NewAppend("")
				waited.Record(tp.Partition(0), 1, nil, []byte("v"), nil)
				s.Submit(waited, func(*storage.Append, error) {})
			}
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("100 topics took %v", took)
		}
		if tp, _ := s.Topic("wind-50"); tp.Partition(0).HighWatermark() != 1 {
			t.Error("a record that waited was left behind by a commit")
		}
		s.Close()
	})
}

func TestCloseCommitsWhatWasSubmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, t.TempDir(), onFS(&testFS{}), func(c *storage.Config) { c.Classes[0].CommitInterval = time.Minute })
		p := topic(t, s, "wind", 1).Partition(0)
		start := time.Now()
		var errs []error
		for range 3 {
			a := s.NewAppend("")
			a.Record(p, 1, nil, []byte("v"), nil)
			s.Submit(a, func(_ *storage.Append, err error) { errs = append(errs, err) })
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(errs) != "[<nil> <nil> <nil>]" || p.HighWatermark() != 3 || time.Since(start) != 0 {
			t.Fatal(errs, p.HighWatermark(), time.Since(start))
		}
		a := s.NewAppend("")
		a.Record(p, 1, nil, []byte("v"), nil)
		if err := s.Commit(t.Context(), a); !errors.Is(err, storage.ErrClosed) {
			t.Fatal(err)
		}
	})
}

func TestOneOpenerAtATime(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := storage.Open(storage.Config{Dir: dir, Classes: []storage.ClassConfig{{Name: "main"}}})
	if err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatal(err)
	}
}

func TestDirectoryOfAnotherNodeIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).Close()
	_, err := storage.Open(storage.Config{Dir: dir, NodeID: "n2", Classes: []storage.ClassConfig{{Name: "main"}}})
	if err == nil || !strings.Contains(err.Error(), `belongs to "n1"`) {
		t.Fatal(err)
	}
	_, err = storage.Open(storage.Config{Dir: dir, NodeID: "n1", Classes: []storage.ClassConfig{{Name: "other"}}})
	if err == nil || !strings.Contains(err.Error(), "not configured") {
		t.Fatal(err)
	}
}
