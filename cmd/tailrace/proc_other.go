//go:build !linux

package main

import (
	"os"
	"os/exec"
	"runtime"
)

func detach(*exec.Cmd) {}

// terminate asks the process to end; Windows has no such signal, so it is killed.
func terminate(p *os.Process) {
	if runtime.GOOS == "windows" {
		p.Kill()
		return
	}
	p.Signal(os.Interrupt)
}

// freeze has no portable form; a kill without it is still one in the middle of work.
func freeze(*os.Process) error { return nil }
