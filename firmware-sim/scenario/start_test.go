package scenario

import (
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/storage/storagetest"
)

// A hub whose disk fails cannot start; an init system tries again and again, and a node goes
// on sending to its address all the while. What an attempt has left open is closed as a
// kernel closes it: packets to it go nowhere, wait for nobody, and the attempt that comes up
// gets all that the node has.
func TestHubThatCannotStartLeavesNoSocketBehind(t *testing.T) {
	certs, dir := scratch(t), scratch(t)
	if err := makeCerts(certs); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := newTruth(t, 1, dir, certs, nil)
		w.hub.real = false // so that its disk can fail
		defer w.end()
		w.up()
		w.flash(w.node)
		w.must(w.node.on())
		w.put(w.node, stream, "a", 0, 30)
		w.must(w.hub.on())
		w.hub.disk().Inject(storagetest.Fault{Call: storagetest.Create, N: 1, Err: syscall.EIO, Forever: true})
		peer := w.wan.open(&net.UDPAddr{IP: net.IPv4(10, 2, 0, 1).To4(), Port: 1})
		for range 20 { // while an attempt has failed and the next has not begun
			time.Sleep(3 * time.Second)
			for range 100 { // more than a socket holds that nobody reads
				_, err := peer.WriteTo(make([]byte, 100), hubAddr)
				w.must(err)
			}
		}
		w.must(peer.Close())
		w.hub.mu.Lock()
		l := w.hub.life
		w.hub.mu.Unlock()
		l.mu.Lock()
		ends, open := len(l.ends), len(l.sockets)
		l.mu.Unlock()
		if ends < 10 || open > 1 {
			t.Errorf("the hub ended %d times and has %d sockets open, want many and at most one", ends, open)
		}
		w.hub.disk().Heal()
		w.complete()
		w.exact(stream)
	})
}
