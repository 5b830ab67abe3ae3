package link_test

import (
	"crypto/tls"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/pki"
)

// BenchmarkHandshakeAtTheHub measures the CPU time that TLS takes at the hub, on a thread of its own, for a whole
// handshake with certificates on both sides and for one that a kept ticket resumes.
func BenchmarkHandshakeAtTheHub(b *testing.B) {
	for _, how := range []string{"whole", "resumed"} {
		b.Run(how, func(b *testing.B) {
			w := newWorld(b, lan)
			server := link.ServingTickets(&tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleHub, "hub")}, ClientCAs: w.pool,
				ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13})
			client := &tls.Config{Certificates: []tls.Certificate{w.cert(w.ca, pki.RoleNode, "node-1")}, RootCAs: w.pool, ServerName: "hub.test"}
			if how == "resumed" {
				client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			var cpu time.Duration
			once := func() (resumed bool) {
				c, err := net.Dial("tcp", l.Addr().String()) // net.Pipe would hang: both ends write at once
				if err != nil {
					b.Fatal(err)
				}
				s, err := l.Accept()
				if err != nil {
					b.Fatal(err)
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					tc := tls.Client(c, client)
					tc.Read(make([]byte, 1)) // the ticket, and the byte
				}()
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				before := threadTime()
				ts := tls.Server(s, server)
				if err := ts.Handshake(); err != nil {
					b.Fatal(err)
				}
				cpu += threadTime() - before
				ts.Write([]byte{1})
				<-done
				s.Close()
				c.Close()
				return ts.ConnectionState().DidResume
			}
			once()
			cpu = 0
			for b.Loop() {
				if once() != (how == "resumed") {
					b.Fatal("not as it should be")
				}
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "hub-cpu-us/op")
		})
	}
}

// threadTime is the CPU time of this thread.
func threadTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(1, &u); err != nil { // RUSAGE_THREAD
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
