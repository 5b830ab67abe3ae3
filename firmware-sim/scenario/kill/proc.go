//go:build linux

// Package kill runs the real daemons as processes, kills them with SIGKILL while devices
// send, and compares what a Kafka consumer gets at the end with a ledger kept outside.
//
// SIGKILL leaves the page cache alone, so this proves nothing about fsync; the simulated
// power cuts do that. It proves that the daemons as they are shipped start again from
// any state they may be killed in, and lose and double nothing.
package kill

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// proc is a daemon that is started again and again.
type proc struct {
	name string
	bin  string
	args []string
	log  *tail

	mu      sync.Mutex
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the present process ended
	kill    bool          // we ended it
	reports []string      // ends that nobody asked for
	starts  int
}

func newProc(name, bin string, args ...string) *proc {
	return &proc{name: name, bin: bin, args: args, log: &tail{}}
}

func (p *proc) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := exec.Command(p.bin, p.args...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := onStarter(cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.cmd, p.exited, p.kill = cmd, make(chan struct{}), false
	p.starts++
	go func(cmd *exec.Cmd, exited chan struct{}) {
		err := cmd.Wait()
		p.mu.Lock()
		if !p.kill {
			p.reports = append(p.reports, fmt.Sprintf("%s ended by itself: %v", p.name, err))
		}
		p.mu.Unlock()
		close(exited)
	}(cmd, p.exited)
	return nil
}

// Daemons die with the test: Pdeathsig works per thread, so all are started by one thread
// that lives as long as the test does.
var starter = sync.OnceValue(func() chan func() {
	ch := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range ch {
			f()
		}
	}()
	return ch
})

func onStarter(f func() error) error {
	done := make(chan error, 1)
	starter() <- func() { done <- f() }
	return <-done
}

// end sends the signal and waits for the process to be gone.
func (p *proc) end(sig os.Signal) error {
	p.mu.Lock()
	cmd, exited := p.cmd, p.exited
	p.kill = true
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-exited
	return nil
}

// unasked are the ends that nobody asked for: a daemon must not stop by itself.
func (p *proc) unasked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.reports...)
}

// tail keeps the end of what a process printed, and every line that tells of a crash.
type tail struct {
	mu    sync.Mutex
	buf   []byte
	crash []string
}

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	for _, word := range []string{"panic:", "fatal error:", "DATA RACE", "internal error"} {
		if bytes.Contains(b, []byte(word)) {
			t.crash = append(t.crash, strings.TrimSpace(string(b)))
		}
	}
	if len(t.buf) > 256<<10 {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-64<<10:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

func (t *tail) crashes() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.crash...)
}
