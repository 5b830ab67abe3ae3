package auth

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
)

// Worker compares passwords in processes of their own, with less priority than this one. In
// this process a hash would hold one of few Ps for milliseconds, while acks wait, and its
// 9 MB would be garbage that the collector has to go through the whole heap for.
//
// A process is started when a password is there and none is idle, and ended when it has been
// idle for a while. One that dies, is late or answers nonsense is killed; then, and when none
// can be started, the hash is computed here, and all of the next minute's are: nobody is let
// in or kept out because of a worker. How many run at once is for the caller to bound. A process ends by itself
// when this one does, however that ends: its standard input does then. Passwords go through that alone.
//
// The nil Worker computes here. All methods may be used concurrently.
type Worker struct {
	Command  func() *exec.Cmd // runs ServeHashes on its standard input and output
	Patience time.Duration    // with one answer; default 3 s
	Idle     time.Duration    // so long it is kept without work; default 30 s
	Logger   *slog.Logger     // never nil

	mu   sync.Mutex // guards the fields below
	free []*helper
	shun time.Time // none is asked before this
}

const (
	workerPatience = 3 * time.Second
	workerIdle     = 30 * time.Second
	workerShunned  = time.Minute
)

// helper is one process. It is asked by one caller at a time.
type helper struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	asked  uint32 // questions so far
	retire *time.Timer
}

// Verify is VerifyHash, done by a worker when one can be had.
func (w *Worker) Verify(hash string, password []byte) bool {
	if w == nil {
		return VerifyHash(hash, password)
	}
	h, err := w.take()
	if h != nil {
		var ok bool
		if ok, err = h.ask(hash, password, w.patience()); err == nil {
			w.give(h)
			return ok
		}
		h.end()
	}
	if err != nil {
		w.mu.Lock()
		w.shun = time.Now().Add(workerShunned)
		w.mu.Unlock()
		w.Logger.Warn("passwords are hashed in this process for a while", "error", err, "for", workerShunned)
	}
	return VerifyHash(hash, password)
}

func (w *Worker) patience() time.Duration {
	if w.Patience > 0 {
		return w.Patience
	}
	return workerPatience
}

// take returns an idle helper or a new one; none without an error: not now.
func (w *Worker) take() (h *helper, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().Before(w.shun) {
		return nil, nil
	}
	if n := len(w.free); n > 0 {
		h, w.free = w.free[n-1], w.free[:n-1]
		h.retire.Stop()
		return h, nil
	}
	h = &helper{cmd: w.Command()}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("hash worker: %w", err)
	}
	if h.out, err = h.cmd.StdoutPipe(); err != nil {
		return nil, fmt.Errorf("hash worker: %w", err)
	}
	inBackground(h.cmd)
	if err := h.cmd.Start(); err != nil { // closes the pipes
		return nil, fmt.Errorf("hash worker: %w", err)
	}
	go h.cmd.Process.Wait() // not Cmd.Wait, which would close the pipes under a read
	return h, nil
}

// give takes a helper back that has answered.
func (w *Worker) give(h *helper) {
	idle := w.Idle
	if idle == 0 {
		idle = workerIdle
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.free = append(w.free, h)
	h.retire = time.AfterFunc(idle, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, f := range w.free {
			if f == h { // else it was taken meanwhile
				w.free = append(w.free[:i], w.free[i+1:]...)
				h.end()
				return
			}
		}
	})
}

// end may be called more than once, and while ask runs: that gets an error then.
func (h *helper) end() {
	h.in.Close()
	h.out.Close()
	h.cmd.Process.Kill() // it has nothing to lose
}

// A question is its number, the lengths of hash and password, and both; the answer is the
// number and yes or no. Big endian.
const (
	questionHead = 8
	answerBytes  = 5
	yes, no      = 'y', 'n'
)

func (h *helper) ask(hash string, password []byte, patience time.Duration) (bool, error) {
	if len(hash) > maxLineBytes || len(password) > 65535 {
		return false, fmt.Errorf("hash worker: a hash of %d and a password of %d bytes", len(hash), len(password))
	}
	h.asked++
	t := time.AfterFunc(patience, h.end) // the read and the write below end with it
	defer t.Stop()
	q := make([]byte, 0, questionHead+len(hash)+len(password))
	q = binary.BigEndian.AppendUint32(q, h.asked)
	q = binary.BigEndian.AppendUint16(q, uint16(len(hash)))
	q = binary.BigEndian.AppendUint16(q, uint16(len(password)))
	q = append(append(q, hash...), password...)
	_, err := h.in.Write(q)
	clear(q)
	if err != nil {
		return false, fmt.Errorf("ask hash worker: %w", err)
	}
	var a [answerBytes]byte
	if _, err := io.ReadFull(h.out, a[:]); err != nil {
		return false, fmt.Errorf("hash worker has not answered (within %v): %w", patience, err)
	}
	if binary.BigEndian.Uint32(a[:]) != h.asked || a[4] != yes && a[4] != no {
		return false, errors.New("hash worker has answered something else")
	}
	if !t.Stop() {
		return false, errors.New("hash worker has answered too late")
	}
	return a[4] == yes, nil
}

// ServeHashes is the other side: it answers until r ends. It is run by a process of its own,
// whose priority it lowers.
func ServeHashes(r io.Reader, w io.Writer) error {
	if err := lowerPriority(); err != nil {
		return fmt.Errorf("lower priority: %w", err)
	}
	in := bufio.NewReader(r)
	var head [questionHead]byte
	for {
		if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint16(head[4:]))
		q := make([]byte, n+int(binary.BigEndian.Uint16(head[6:])))
		if _, err := io.ReadFull(in, q); err != nil {
			return err
		}
		a := append(bytes.Clone(head[:4]), no)
		if VerifyHash(string(q[:n]), q[n:]) {
			a[4] = yes
		}
		clear(q)
		if _, err := w.Write(a); err != nil {
			return err
		}
		runtime.GC() // the memory of this hash serves the next one
	}
}

// SelfWorker is a Worker whose processes run this very executable, even when another has taken its
// place on disk, with one argument.
func SelfWorker(argument string, l *slog.Logger) (*Worker, error) {
	exe, err := executable()
	if err != nil {
		return nil, err
	}
	return &Worker{Logger: l, Command: func() *exec.Cmd {
		c := exec.Command(exe, argument)
		c.Args[0] = os.Args[0]
		c.Env = append(os.Environ(), "GOMAXPROCS=1")
		return c
	}}, nil
}
