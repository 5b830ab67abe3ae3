package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// progress draws a count and a rate on one line of a terminal, a few times a second.
type progress struct {
	w     io.Writer
	unit  string
	off   bool
	mu    sync.Mutex
	n     int64
	total int64 // 0: not known
	start time.Time
	shown time.Time
	last  int // length of the line drawn
}

// redraw is how often a progress line changes.
const redraw = 200 * time.Millisecond

// newProgress draws on w when it is a terminal, unless off.
func newProgress(w io.Writer, off bool, unit string) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, unit: unit, off: off || !ok || !isTerminal(f), start: time.Now()}
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += n
	if p.off || time.Since(p.shown) < redraw {
		return
	}
	p.draw()
}

// restart begins to count anew.
func (p *progress) restart() {
	p.mu.Lock()
	p.n, p.start = 0, time.Now()
	p.mu.Unlock()
}

func (p *progress) draw() {
	p.shown = time.Now()
	secs := max(time.Since(p.start).Seconds(), 0.001)
	line := fmt.Sprintf("%d %s, %.0f/s", p.n, p.unit, float64(p.n)/secs)
	if p.total > 0 {
		line = fmt.Sprintf("%3d %%  %d of %d %s, %.0f/s", 100*p.n/p.total, p.n, p.total, p.unit, float64(p.n)/secs)
	}
	fmt.Fprintf(p.w, "\r%-*s", p.last, line)
	p.last = len(line)
}

func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.off && p.n > 0 {
		p.draw()
		fmt.Fprintln(p.w)
	}
	p.off = true
}
