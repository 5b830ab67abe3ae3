//go:build unix

package mqtt_test

import (
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"tailrace/edge/mqtt"
)

// BenchmarkLogin is what one login costs, client and server together: over TLS the handshake (P-256,
// TLS 1.3, no client certificate) is nearly all of it. CPU/op beside ns/op, since both sides share the machine.
func BenchmarkLogin(b *testing.B) {
	server, _, pool := authority(b)
	for name, conf := range map[string]*tls.Config{"tcp": nil, "tls": {Certificates: []tls.Certificate{server}}} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, newBackend(), func(c *mqtt.Config) { c.Limits.ConnectRate, c.Limits.ConnectBurst = 1e6, 1e6 })
			addr := w.listen(mqtt.ListenerOptions{TLS: conf})
			hello := connect(4, opts{id: "x"})
			var ack [4]byte
			before := cpuTime(b)
			n := 0
			for b.Loop() {
				var nc net.Conn
				var err error
				if conf == nil {
					nc, err = net.Dial("tcp", addr)
				} else {
					nc, err = tls.Dial("tcp", addr, &tls.Config{RootCAs: pool})
				}
				if err == nil {
					nc.Write(hello)
					_, err = io.ReadFull(nc, ack[:])
				}
				if err != nil {
					b.Fatal(err)
				}
				nc.Close()
				n++
			}
			b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(n), "cpu-us/op")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
