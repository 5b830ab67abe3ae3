package main

import (
	"os"
	"os/exec"
	"syscall"
)

// detach puts the child in its own process group, and has the kernel end it when
// this process dies, however that happens.
func detach(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

func terminate(p *os.Process) { p.Signal(syscall.SIGTERM) }

// freeze stops the process without its knowing, until it is killed.
func freeze(p *os.Process) error { return p.Signal(syscall.SIGSTOP) }
