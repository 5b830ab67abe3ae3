//go:build !unix

package mqtt

import "net"

// rawReader exists on unix only; elsewhere connections wait with a small array.
type rawReader struct{}

func newRawReader(net.Conn) *rawReader { return nil }

func (*rawReader) read() (*chunk, error) { panic("internal error: no raw reader here") }
