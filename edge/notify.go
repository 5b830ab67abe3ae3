package edge

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"
)

// notifier speaks sd_notify(3): one datagram to the socket that systemd names. All
// methods do nothing when there is none.
type notifier struct {
	socket   string
	watchdog time.Duration // 0 = systemd does not watch us
}

func newNotifier(env func(string) string) notifier {
	n := notifier{socket: env("NOTIFY_SOCKET")}
	if us, err := strconv.ParseInt(env("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		if pid := env("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
			n.watchdog = time.Duration(us) * time.Microsecond
		}
	}
	return n
}

func (n notifier) send(state string) error {
	if n.socket == "" {
		return nil
	}
	name := n.socket
	if name[0] == '@' { // abstract name space
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

// watch feeds the watchdog at half its period as long as healthy says so: a node
// whose committer is stuck is restarted rather than left accepting connections.
func (n notifier) watch(ctx context.Context, healthy func() bool) {
	if n.socket == "" || n.watchdog == 0 {
		return
	}
	t := time.NewTicker(n.watchdog / 2)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if healthy() {
				_ = n.send("WATCHDOG=1") // lost ones end in a restart, which is what the watchdog is for
			}
		}
	}
}
