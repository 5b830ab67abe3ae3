//go:build !linux

package auth

import (
	"os"
	"os/exec"
)

func inBackground(*exec.Cmd) {}

func lowerPriority() error { return nil }

func executable() (string, error) { return os.Executable() }
