package main

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"

	"tailrace/uplink/hub"
)

// notify tells systemd the daemon's state (sd_notify(3)): one datagram to the
// socket named in the environment. Without one it does nothing.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' { // abstract socket
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return // systemd then takes the start for failed, and says so
	}
	defer c.Close()
	c.Write([]byte(state))
}

// watchdog reports readiness once and then feeds systemd's watchdog while the
// store makes progress: a commit that hangs is what a restart can help.
func watchdog(ctx context.Context, h *hub.Hub) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !h.Ready() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	notify("READY=1")
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 {
		return
	}
	tick.Reset(time.Duration(usec) * time.Microsecond / 3)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if h.Alive() {
				notify("WATCHDOG=1")
			}
		}
	}
}
