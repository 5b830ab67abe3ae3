package auth

import (
	"os"
	"os/exec"
	"syscall"
)

// workerNice is what a worker leaves to others: enough that acks go first, and still a tenth of
// a core when everything else is busy, so that a login comes to its turn.
const workerNice = 10

// inBackground gives the process a group of its own: what a terminal sends to the node is not for
// it, and lowerPriority reaches all its threads.
func inBackground(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// lowerPriority is for all threads, also those to come: nice belongs to a thread, and PRIO_PROCESS
// would be this one alone.
func lowerPriority() error {
	if syscall.Getpgrp() != os.Getpid() {
		return nil // not started by inBackground
	}
	os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0) // rather the worker than the node; else as it is
	return syscall.Setpriority(syscall.PRIO_PGRP, 0, workerNice)
}

func executable() (string, error) { return "/proc/self/exe", nil }
