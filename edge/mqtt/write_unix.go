//go:build unix

package mqtt

import (
	"sync"
	"syscall"
)

// tryWriter writes to a socket without waiting for it.
type tryWriter struct {
	fn  func(fd uintptr) bool // = w.try, bound once
	b   []byte
	n   int
	err error
}

var tryWriters = sync.Pool{New: func() any {
	w := &tryWriter{}
	w.fn = w.try
	return w
}}

// try is called by the poller; true means do not wait.
func (w *tryWriter) try(fd uintptr) bool {
	for {
		n, err := rawWrite(fd, w.b)
		switch err {
		case nil:
			w.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			w.err = err
		}
		return true
	}
}

// write returns how many bytes the socket has taken.
func (w *tryWriter) write(rc syscall.RawConn, b []byte) (int, error) {
	w.b, w.n, w.err = b, 0, nil
	err := rc.Write(w.fn)
	w.b = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}
