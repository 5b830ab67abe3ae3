package storage

import (
	"context"
	"fmt"
)

// Submit hands a to the committer. done is called once, after the fsync that
// makes all of a durable (nil), or after it is certain that nothing of it is
// acknowledged: ErrFull, ErrClosed, a *DiskError, or what is wrong with a. The
// calls come in the order of submission on the committer's goroutine (for an append
// that is refused at once, on the caller's): done must not block, nor call Submit. Submit blocks only while more than a bounded number
// of bytes wait. Until done is called, a belongs to the store.
func (s *Store) Submit(a *Append, done func(a *Append, err error)) {
	l := a.log
	switch {
	case a.err != nil:
		done(a, a.err)
		return
	case a.Bytes() > maxAppendBytes:
		done(a, fmt.Errorf("%w: append of %d bytes, the limit is %d", ErrTooLarge, a.Bytes(), maxAppendBytes))
		return
	}
	n := int64(a.Bytes())
	l.mu.Lock()
	for l.waiting > maxWaitingBytes && !l.closed {
		l.room.Wait()
	}
	if l.closed {
		l.mu.Unlock()
		done(a, ErrClosed)
		return
	}
	first := len(l.queue) == 0
	before := l.waiting
	l.queue = append(l.queue, request{a, done})
	l.waiting += n
	l.hurry = l.hurry || a.now
	enough := int64(l.cfg.CommitBytes)
	l.mu.Unlock()
	if first || a.now || before < enough && before+n >= enough {
		l.wakeup()
	}
}

// Commit is Submit, and waits. When ctx ends first, the append is still on its
// way and a must not be used again.
func (s *Store) Commit(ctx context.Context, a *Append) error {
	ch := make(chan error, 1)
	s.Submit(a, func(_ *Append, err error) { ch <- err })
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// do runs f on the committer's goroutine between two commits and waits for it.
func (l *classLog) do(f func() error) error {
	ch := make(chan error, 1)
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.tasks = append(l.tasks, func() { ch <- f() })
	l.mu.Unlock()
	l.wakeup()
	return <-ch
}

// post is do without waiting; after Close it does nothing.
func (l *classLog) post(f func()) {
	l.mu.Lock()
	if !l.closed {
		l.tasks = append(l.tasks, f)
	}
	l.mu.Unlock()
	l.wakeup()
}
