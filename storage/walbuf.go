package storage

import (
	"os"
	"reflect"
	"unsafe"

	"github.com/tidwall/wal"
)

// tidwall/wal v1.2.1 keeps a copy of the tail segment in memory, in a slice that it
// begins anew with every segment and grows by append: five bytes allocated, copied and
// collected per byte logged, a fifth of a busy node's CPU time. There is no option for
// it, so the buffer of the segment that was just sealed is handed to the new one.

// maxKeptTail is the largest segment whose buffer is handed on. A hub's have 8 MiB.
const maxKeptTail = 8 << 20

// tailBuffer is where w keeps the bytes of its tail segment: the field
// segments[last].ebuf. nil when the library's layout is another one; then it
// allocates as it always did, and TestTailBufferIsFound fails.
func tailBuffer(w *wal.Log) *[]byte {
	segments := reflect.ValueOf(w).Elem().FieldByName("segments")
	if segments.Kind() != reflect.Slice || segments.Len() == 0 || segments.Type().Elem().Kind() != reflect.Pointer {
		return nil
	}
	tail := segments.Index(segments.Len() - 1).Elem()
	if tail.Kind() != reflect.Struct {
		return nil
	}
	return fieldOf[[]byte](tail, "ebuf")
}

// fieldOf is where a struct of the library keeps a field, nil when it has none of this
// name and type.
func fieldOf[T any](v reflect.Value, name string) *T {
	f := v.FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		return nil
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr()))
}

// closeWAL is w.Close, which leaves the file of the tail open when its fsync fails: the
// file system could not be unmounted before a finalizer has found it.
func closeWAL(w *wal.Log) error {
	err := w.Close()
	if err != nil {
		if f := fieldOf[*os.File](reflect.ValueOf(w).Elem(), "sfile"); f != nil {
			(*f).Close() // what it says means nothing any more
		}
	}
	return err
}

// writeChunk is how much of a commit is given to the library at a time: it copies a
// batch twice, which is cheap while the batch is in the processor's cache.
const writeChunk = 256 << 10

// flushBatch writes what c.batch holds. With rolls the library begins new segments
// meanwhile; the last gets the memory of the one that was the tail.
func (c *committer) flushBatch(rolls int) error {
	if rolls == 0 {
		if !c.lent && c.tailSize > writeChunk {
			c.lent = true
			c.l.lendBuffer(c.wal, nil)
		}
		return c.wal.WriteBatch(&c.batch)
	}
	var kept []byte
	if t := tailBuffer(c.wal); t != nil {
		kept = *t
	}
	if err := c.wal.WriteBatch(&c.batch); err != nil {
		return err
	}
	c.wal.ClearCache() // it would keep the sealed segment; kept is ours now
	c.l.lendBuffer(c.wal, kept)
	return nil
}

// lendBuffer gives the library's tail a buffer that need not grow. A new one takes no
// memory before it is written to.
func (l *classLog) lendBuffer(w *wal.Log, kept []byte) {
	want := l.cfg.SegmentBytes + min(l.cfg.SegmentBytes/2, l.cfg.MaxBatchBytes)
	t := tailBuffer(w)
	if t == nil || l.cfg.SegmentBytes > maxKeptTail {
		return
	}
	if cap(kept) < want {
		kept = make([]byte, 0, want)
	}
	if cap(*t) < cap(kept) {
		*t = append(kept[:0], *t...)
	}
}
