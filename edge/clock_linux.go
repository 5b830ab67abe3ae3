package edge

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// kernelSynced: somebody (ntpd, chrony, systemd-timesyncd, a GPS daemon) keeps the
// kernel's clock.
func kernelSynced() bool {
	const unsynced, timeError = 0x40, 5 // STA_UNSYNC, TIME_ERROR
	var t syscall.Timex
	state, err := syscall.Adjtimex(&t)
	return err == nil && state != timeError && t.Status&unsynced == 0
}

// kernelBoot names this boot of the machine, and says how long it lasts.
func kernelBoot() (string, time.Duration) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", 0
	}
	u, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return "", 0
	}
	first, _, _ := strings.Cut(string(u), " ")
	s, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return "", 0
	}
	return strings.TrimSpace(string(b)), time.Duration(s * float64(time.Second))
}
