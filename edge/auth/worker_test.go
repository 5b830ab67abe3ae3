package auth_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"tailrace/edge/auth"
)

// TestMain lets the test binary be a worker, good or bad, or a node that has one.
func TestMain(m *testing.M) {
	switch os.Getenv("AUTH_TEST_ROLE") {
	case "worker":
		if err := auth.ServeHashes(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "yes-man": // the first bytes of a question are what an answer begins with
		for q := make([]byte, 4096); ; {
			if _, err := os.Stdin.Read(q); err != nil {
				return
			}
			os.Stdout.Write(append(q[:4:4], 'y'))
		}
	case "stranger":
		os.Stdin.Read(make([]byte, 1))
		os.Stdout.WriteString("1234y")
		io.Copy(io.Discard, os.Stdin)
	case "dead":
	case "silent":
		io.Copy(io.Discard, os.Stdin)
	case "node":
		w := &auth.Worker{Command: as("worker"), Logger: slog.New(slog.DiscardHandler)}
		w.Verify(os.Getenv("AUTH_TEST_HASH"), []byte("secret"))
		fmt.Println("asked")
		select {}
	default:
		os.Exit(m.Run())
	}
}

// as starts this binary in a role. Its standard error is that of the test.
func as(role string) func() *exec.Cmd {
	return func() *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "AUTH_TEST_ROLE="+role)
		c.Stderr = os.Stderr
		return c
	}
}

func newWorker(role string) (w *auth.Worker, started *int, log *bytes.Buffer) {
	started, log = new(int), new(bytes.Buffer)
	cmd := as(role)
	return &auth.Worker{Command: func() *exec.Cmd { *started++; return cmd() }, Patience: time.Minute, Idle: time.Minute,
		Logger: slog.New(slog.NewTextHandler(log, nil))}, started, log
}

func secret(t *testing.T) string {
	t.Helper()
	h, err := auth.Hash([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestAWorkerAnswersAsThisProcessWould(t *testing.T) {
	h := secret(t)
	w, started, log := newWorker("worker")
	for range 3 {
		for _, pw := range []string{"secret", "secre", "", strings.Repeat("x", 65535)} {
			if got, want := w.Verify(h, []byte(pw)), pw == "secret"; got != want {
				t.Errorf("%.10q: %v", pw, got)
			}
		}
	}
	if *started != 1 || log.Len() > 0 {
		t.Errorf("%d processes, %s", *started, log)
	}
	var wg sync.WaitGroup
	for i := range 4 { // at once; each has a process of its own
		wg.Go(func() {
			if pw := fmt.Sprint("secret", i)[:6+i%2]; w.Verify(h, []byte(pw)) != (pw == "secret") {
				t.Errorf("%q", pw)
			}
		})
	}
	wg.Wait()
}

// It is the worker that is asked: one that lies is believed. One that fails is not, nor is another
// started at once.
func TestAWorkerThatFailsIsDoneWithout(t *testing.T) {
	h := secret(t)
	w, _, _ := newWorker("yes-man")
	if !w.Verify(h, []byte("wrong")) {
		t.Error("the worker was not asked")
	}
	for _, role := range []string{"dead", "silent", "stranger"} {
		w, started, log := newWorker(role)
		if role == "silent" {
			w.Patience = time.Millisecond
		}
		if !w.Verify(h, []byte("secret")) || w.Verify(h, []byte("wrong")) {
			t.Errorf("%s: wrong answer", role)
		}
		if *started != 1 || strings.Count(log.String(), "\n") != 1 || strings.Contains(log.String(), "secret") || strings.Contains(log.String(), h) {
			t.Errorf("%s: %d processes, log %s", role, *started, log)
		}
	}
	w, _, log := newWorker("worker")
	w.Command = func() *exec.Cmd { return exec.Command("/nonexistent") }
	if !w.Verify(h, []byte("secret")) || w.Verify(h, []byte("wrong")) || log.Len() == 0 {
		t.Errorf("none can be started: %s", log)
	}
}

// ended waits until nobody has the other end of a pipe any more.
func ended(t *testing.T, r *os.File) {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(time.Minute))
	if b, err := io.ReadAll(r); err != nil {
		t.Errorf("still there: %q, %v", b, err)
	}
}

func TestAnIdleWorkerEnds(t *testing.T) {
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w, started, _ := newWorker("worker")
	start := w.Command
	w.Command = func() *exec.Cmd { c := start(); c.Stderr = out; return c }
	w.Idle = time.Millisecond
	h := secret(t)
	w.Verify(h, []byte("secret"))
	out.Close()
	ended(t, r)
	if w.Command = start; !w.Verify(h, []byte("secret")) || *started != 2 {
		t.Errorf("%d processes", *started)
	}
}

// A node that is killed leaves no worker behind.
func TestAWorkerEndsWithItsNode(t *testing.T) {
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	node := as("node")()
	node.Env = append(node.Env, "AUTH_TEST_HASH="+secret(t))
	node.Stderr = out // the worker's, too
	stdout, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	out.Close()
	if _, err := io.ReadFull(stdout, make([]byte, len("asked"))); err != nil {
		t.Error(err)
	}
	node.Process.Kill()
	node.Wait()
	ended(t, r)
}
