package link

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func netlink(typ uint16, body []byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(b, uint32(len(b)+len(body)))
	binary.NativeEndian.PutUint16(b[4:], typ)
	b = append(b, body...)
	return append(b, make([]byte, -len(b)&3)...)
}

func TestLinkBetter(t *testing.T) {
	route := make([]byte, unix.SizeofRtMsg)
	inside := make([]byte, unix.SizeofRtMsg)
	inside[1] = 24
	running := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(running[8:], unix.IFF_UP|unix.IFF_RUNNING)
	down := make([]byte, unix.SizeofIfInfomsg)
	for _, c := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"nothing", nil, false},
		{"address", netlink(unix.RTM_NEWADDR, nil), true},
		{"address gone", netlink(unix.RTM_DELADDR, nil), false},
		{"default route", netlink(unix.RTM_NEWROUTE, route), true},
		{"other route", netlink(unix.RTM_NEWROUTE, inside), false},
		{"interface runs", netlink(unix.RTM_NEWLINK, running), true},
		{"interface down", netlink(unix.RTM_NEWLINK, down), false},
		{"second message", append(netlink(unix.RTM_NEWLINK, down), netlink(unix.RTM_NEWADDR, nil)...), true},
		{"cut", netlink(unix.RTM_NEWADDR, nil)[:10], false},
		{"length zero", make([]byte, 32), false},
	} {
		if got := linkBetter(c.b); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestWatchLinkUpEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- WatchLinkUp(ctx, func() {}) }()
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Skip("no netlink here: ", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("does not end")
	}
}
