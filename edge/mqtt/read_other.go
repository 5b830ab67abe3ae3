//go:build !unix

package mqtt

import (
	"net"
	"sync"
	"syscall"
)

// rawReader exists on unix only; elsewhere connections wait with a small array.
type rawReader struct{ rc syscall.RawConn }

func newRawReader(net.Conn) *rawReader { return nil }

func (*rawReader) read() (*chunk, error) { panic("internal error: no raw reader here") }

// tryWriter likewise: every connection has its own writer.
type tryWriter struct{}

var tryWriters = sync.Pool{New: func() any { return &tryWriter{} }}

func (*tryWriter) write(syscall.RawConn, []byte) (int, error) {
	panic("internal error: no raw writer here")
}
