package mqtt_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
)

// TestIdleClientsAreSmall holds idle clients and looks at what each costs: no buffer,
// and on Linux no goroutine once they have been silent for a while. Both ends live in this process; the client's end is a
// bare socket without a goroutine.
func TestIdleClientsAreSmall(t *testing.T) {
	if raceDetector {
		t.Skip("sizes are others under the race detector")
	}
	const n = 2000
	for _, c := range []struct {
		name  string
		publ  bool
		limit float64
	}{{"never published", false, 3300}, {"has published", true, 4200}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, newBackend(), nil)
			before, goroutines := memory(), runtime.NumGoroutine()
			conns := make([]net.Conn, 0, n)
			ack := make([]byte, 64)
			for i := range n {
				nc, err := net.Dial("tcp", w.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				p, want := connect(4, opts{id: fmt.Sprint("idle", i), keepAlive: 600}), 4
				if c.publ {
					p, want = append(p, publish(4, 1, 1, "site/device", "x")...), 8
				}
				nc.Write(p)
				for got := 0; got < want; {
					k, err := nc.Read(ack)
					if err != nil {
						t.Fatal(err)
					}
					got += k
				}
				conns = append(conns, nc)
			}
			if runtime.GOOS == "linux" {
				w.silentBetweenLooks(n)
			}
			per := float64(memory()-before) / n
			g := float64(runtime.NumGoroutine()-goroutines) / n
			t.Logf("%.1f KB and %.2f goroutines per idle client; RSS of the process %d MB", per/1024, g, rss()>>20)
			if per > c.limit && runtime.GOOS == "linux" {
				t.Errorf("%.0f bytes per idle client, want at most %.0f", per, c.limit)
			}
			if runtime.GOOS != "linux" {
				g--
			}
			if g > 0.01 {
				t.Errorf("%.2f goroutines per idle client", g)
			}
			runtime.KeepAlive(conns)
		})
	}
}

// memory is heap and stacks in use, after the garbage has gone and stacks have shrunk.
func memory() int64 {
	for range 3 {
		debug.FreeOSMemory()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func rss() int64 {
	b, _ := os.ReadFile("/proc/self/statm")
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(f[1], 10, 64)
	return n * int64(os.Getpagesize())
}
