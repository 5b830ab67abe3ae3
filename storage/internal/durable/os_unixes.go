//go:build unix && !linux

package durable

import "golang.org/x/sys/unix"

var unreadable = []error{unix.EIO, unix.EILSEQ, unix.EBADMSG}
