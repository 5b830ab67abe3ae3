//go:build unix

package mqtt

import (
	"io"
	"net"
	"syscall"
)

// rawReader reads from a TCP connection with a pooled buffer that is taken only
// when there is something to read, so an idle connection holds none.
type rawReader struct {
	rc  syscall.RawConn
	fn  func(fd uintptr) bool // = r.try, bound once
	ch  *chunk
	err error
}

func newRawReader(nc net.Conn) *rawReader {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	r := &rawReader{rc: rc}
	r.fn = r.try
	return r
}

// try is called by the poller; false means wait until readable.
func (r *rawReader) try(fd uintptr) bool {
	ch := getChunk()
	for {
		n, err := rawRead(fd, ch.b[:cap(ch.b)])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			putChunk(ch)
			return false
		case err != nil:
			r.err = err
		case n == 0:
			r.err = io.EOF
		default:
			ch.b = ch.b[:n]
			r.ch = ch
			return true
		}
		putChunk(ch)
		return true
	}
}

func (r *rawReader) read() (*chunk, error) {
	r.ch, r.err = nil, nil
	if err := r.rc.Read(r.fn); err != nil {
		if r.ch != nil {
			putChunk(r.ch)
			r.ch = nil
		}
		return nil, err
	}
	return r.ch, r.err
}
