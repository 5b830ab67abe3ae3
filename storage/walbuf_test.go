package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"testing"

	"github.com/tidwall/wal"

	"tailrace/storage/record"
)

// The field of the library is where walbuf.go looks for it, and a log whose tail has
// been given a buffer is the same as one that has not.
func TestTailBufferIsFound(t *testing.T) {
	w, err := wal.Open(t.TempDir(), &wal.Options{NoSync: true, AllowEmpty: true, SegmentCacheSize: 1, SegmentSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := uint64(1); i <= 3; i++ {
		if err := w.Write(i, bytes.Repeat([]byte{byte(i)}, 300)); err != nil {
			t.Fatal(err)
		}
	}
	b := tailBuffer(w)
	if b == nil || len(*b) != 3*302 {
		t.Fatal("the tail of tidwall/wal is not where it was in v1.2.1: look at walbuf.go")
	}
	*b = append(make([]byte, 0, 4096), *b...)
	if err := w.Write(4, []byte("the last of this segment, with some bytes more than 94, so that the library begins a new one after it.")); err != nil {
		t.Fatal(err)
	}
	if b = tailBuffer(w); len(*b) != 0 {
		t.Fatalf("the new tail has %d bytes", len(*b))
	}
	for i := uint64(1); i <= 3; i++ {
		if got, err := w.Read(i); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, 300)) {
			t.Fatalf("entry %d: %x, %v", i, got, err)
		}
	}
}

// What the log allocates does not grow with what is logged: before the buffer was
// handed on it was five bytes per byte. A node's segments, and a hub's.
func TestSegmentsShareOneBuffer(t *testing.T) {
	for _, segment := range []int{1 << 20, 8 << 20} {
		t.Run(fmt.Sprintf("%dMiB", segment>>20), func(t *testing.T) { sharedBuffer(t, segment) })
	}
}

func sharedBuffer(t *testing.T, segment int) {
	s, err := Open(Config{Dir: t.TempDir(), NodeID: "n", Classes: []ClassConfig{{Name: "main", SegmentBytes: segment, WhenFull: Reject}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	topic, err := s.CreateTopic("load", TopicConfig{})
	if err != nil {
		t.Fatal(err)
	}
	p := topic.Partition(0)
	a, value := s.NewAppend(""), make([]byte, 200)
	commits := segment >> 16 // of a segment
	write := func(segments int) {
		for range segments * commits {
			a.Reset()
			for range 330 { // 68 KB
				if err := a.Record(p, 1, nil, value, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Commit(context.Background(), a); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(2)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	write(4)
	runtime.ReadMemStats(&after)
	logged := 4 * commits * 330 * 209
	if per := float64(after.TotalAlloc-before.TotalAlloc) / float64(logged); per > 0.3 {
		t.Errorf("%.2f bytes allocated per byte logged", per)
	}
}

// A batch that is stored whole is copied once, into the append, and lies there as the
// entry that is written.
func TestBatchIsCopiedOnce(t *testing.T) {
	s, err := Open(Config{Dir: t.TempDir(), NodeID: "n", Classes: []ClassConfig{{Name: "main", WhenFull: Reject}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	topic, err := s.CreateTopic("load", TopicConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var b record.Builder
	b.Reset(nil)
	for i := range 200 {
		b.Add(int64(i), nil, make([]byte, 500), nil)
	}
	batch := b.Finish(0, 0)
	a := s.NewAppend("")
	write := func(n int) {
		for range n {
			a.Reset()
			if err := a.Batch(topic.Partition(0), batch, &Origin{Node: "n", Topic: "load", To: 200}); err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(context.Background(), a); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(20)
	if n := len(s.logs[0].c.free); n > 1 { // for state; a batch took none
		t.Errorf("the committer keeps %d buffers", n)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	write(20)
	runtime.ReadMemStats(&after)
	if per := float64(after.TotalAlloc-before.TotalAlloc) / float64(20*len(batch)); per > 0.5 {
		t.Errorf("%.2f bytes allocated per byte stored", per)
	}
}

// A pipe cannot be fsynced: the library's Close fails before it closes the file.
func TestFileOfFailedCloseIsClosed(t *testing.T) {
	w, err := wal.Open(t.TempDir(), &wal.Options{NoSync: true, AllowEmpty: true})
	if err != nil {
		t.Fatal(err)
	}
	f := fieldOf[*os.File](reflect.ValueOf(w).Elem(), "sfile")
	if f == nil {
		t.Fatal("the file of tidwall/wal is not where it was in v1.2.1: look at walbuf.go")
	}
	(*f).Close()
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	*f = pipe
	if err := closeWAL(w); err == nil || errors.Is(err, os.ErrClosed) {
		t.Fatalf("close: %v", err)
	}
	if _, err := pipe.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is open: %v", err)
	}
}
