package mqtt

import (
	"runtime"
	"sync"
)

// flusher writes for all TCP connections what their sockets take at once: one
// goroutine while there is something to write (more when the line is long), where a
// writer each would start and end one per connection and commit. What a socket does
// not take at once is left to the outbox's own writer, so a peer that does not read
// delays nobody.
type flusher struct {
	mu      sync.Mutex
	queue   []*outbox // queue[head:] waits; each once, since it is "running" meanwhile
	head    int
	workers int

	loop func() // = f.run, bound once
}

// flushTurn is how many outboxes a worker takes at a time, flushLine how long the
// line may be for one worker.
const (
	flushTurn = 32
	flushLine = 4 * flushTurn
)

func (f *flusher) init() { f.loop = f.run }

func (f *flusher) add(o *outbox) {
	f.mu.Lock()
	if len(f.queue) == cap(f.queue) && f.head > len(f.queue)/2 { // it need not ever be empty
		n := copy(f.queue, f.queue[f.head:])
		clear(f.queue[n:])
		f.queue, f.head = f.queue[:n], 0
	}
	f.queue = append(f.queue, o)
	start := f.workers == 0 || len(f.queue)-f.head > f.workers*flushLine && f.workers < runtime.GOMAXPROCS(0)
	if start {
		f.workers++
	}
	f.mu.Unlock()
	if start {
		go f.loop()
	}
}

func (f *flusher) run() {
	w := tryWriters.Get().(*tryWriter)
	defer tryWriters.Put(w)
	var turn [flushTurn]*outbox
	for {
		n := f.take(turn[:])
		if n == 0 {
			return
		}
		for i, o := range turn[:n] {
			turn[i] = nil
			o.flush(w)
		}
	}
}

// take moves the first of the line into turn; 0 = there is none, and the worker has ended.
func (f *flusher) take(turn []*outbox) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := copy(turn, f.queue[f.head:])
	clear(f.queue[f.head : f.head+n])
	if f.head += n; f.head == len(f.queue) {
		f.queue, f.head = f.queue[:0], 0
	}
	if n == 0 {
		f.workers--
	}
	return n
}

// flush writes once what waits. It does not block.
func (o *outbox) flush(w *tryWriter) {
	o.mu.Lock()
	c, over := o.cur, o.over
	switch {
	case o.closing: // lingers
		o.mu.Unlock()
		o.start()
		return
	case c == nil || o.broken:
		o.cur, o.over, o.running = nil, false, false
		o.mu.Unlock()
		if c != nil {
			putChunk(c)
		}
		o.hasRoom(over)
		return
	}
	o.cur, o.over = nil, false
	o.mu.Unlock()
	n, err := w.write(o.rc, c.b)
	o.mu.Lock()
	if err == nil && n < len(c.b) {
		c.b = c.b[:copy(c.b, c.b[n:])]
		if o.cur != nil {
			c.b = append(c.b, o.cur.b...)
			putChunk(o.cur)
		}
		o.cur, o.over = c, o.over || over
		o.mu.Unlock()
		o.start()
		return
	}
	putChunk(c)
	o.broken = o.broken || err != nil
	more := o.cur != nil || o.closing
	o.running = more
	o.mu.Unlock()
	if err != nil {
		o.fail()
	}
	if more {
		o.flusher.add(o)
	}
	o.hasRoom(over)
}

func (o *outbox) hasRoom(over bool) {
	if over {
		o.c.drained()
	}
}
