package link

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// WatchLinkUp calls up, at most once a second, when the kernel reports that the machine's
// network changed for the better: an interface that runs, an address, a default route.
// It returns when ctx ends, or with the reason why the kernel cannot be asked.
func WatchLinkUp(ctx context.Context, up func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("watch the network: %w", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("watch the network: %w", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 32<<10)
	var last time.Time
	for ctx.Err() == nil {
		n, err := f.Read(b)
		better := errors.Is(err, unix.ENOBUFS) // messages were lost: it may have been one
		if err == nil {
			better = linkBetter(b[:n])
		} else if !better {
			if ctx.Err() == nil {
				return fmt.Errorf("watch the network: %w", err)
			}
			break
		}
		if now := time.Now(); better && now.Sub(last) >= time.Second {
			last = now
			up()
		}
	}
	return ctx.Err()
}

// linkBetter says whether one of the netlink messages in b means that a path may work now
// that did not before.
func linkBetter(b []byte) bool {
	for len(b) >= unix.SizeofNlMsghdr {
		h := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return false
		}
		body := b[unix.SizeofNlMsghdr:n]
		switch h.Type {
		case unix.RTM_NEWADDR:
			return true
		case unix.RTM_NEWROUTE:
			if len(body) >= unix.SizeofRtMsg && (*unix.RtMsg)(unsafe.Pointer(&body[0])).Dst_len == 0 {
				return true // a default route
			}
		case unix.RTM_NEWLINK:
			if len(body) >= unix.SizeofIfInfomsg {
				m := (*unix.IfInfomsg)(unsafe.Pointer(&body[0]))
				if m.Flags&unix.IFF_RUNNING != 0 && m.Flags&unix.IFF_LOOPBACK == 0 {
					return true
				}
			}
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return false
}
