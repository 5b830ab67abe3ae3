package link_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

func TestCommandsAndConfigReachTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		hub, stopHub := w.hub(nil)
		src := newSource(1, "wind")
		configs := make(chan wire.Config, 4)
		block := make(chan struct{})
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
			c.OnConfig = func(c wire.Config) { configs <- c }
			c.OnCommand = func(c wire.Command) wire.CommandResult {
				if c.Name == "hang" {
					<-block
				}
				return wire.CommandResult{Body: append([]byte(c.Name+" "), c.Args...)}
			}
		})
		if _, err := hub.Command(context.Background(), "node-1", "x", nil); !errors.Is(err, link.ErrNotConnected) {
			t.Errorf("command to an absent node: %v", err)
		}
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		r, err := hub.Command(context.Background(), "node-1", "echo", []byte("me"))
		if err != nil || string(r.Body) != "echo me" {
			t.Errorf("command: %q %v", r.Body, err)
		}
		if err := hub.Configure("node-1", wire.Config{Version: 3, Body: []byte("a: 1")}); err != nil {
			t.Error(err)
		}
		if got := <-configs; got.Version != 3 || string(got.Body) != "a: 1" {
			t.Errorf("config %+v", got)
		}
		// A command that hangs holds neither data nor the link, and its waiter may leave.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		if _, err := hub.Command(ctx, "node-1", "hang", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("hanging command: %v", err)
		}
		cancel()
		src.put(0, 10, 100)
		w.until(time.Second, "data", func() bool { return src.ackedTo(0) == 10 })
		if w.sink.sessions != 1 {
			t.Errorf("%d sessions", w.sink.sessions)
		}
		if err := hub.Disconnect("node-1", wire.CodeShutdown, "try again"); err != nil {
			t.Error(err)
		}
		src.put(0, 10, 100)
		w.until(10*time.Second, "data in the next session", func() bool { return src.ackedTo(0) == 20 })
		close(block)
		time.Sleep(time.Second)
		if r, err := hub.Command(context.Background(), "node-1", "echo", []byte("again")); err != nil || string(r.Body) != "echo again" {
			t.Errorf("command after the hang: %q %v", r.Body, err)
		}
		if w.sink.sessions != 2 {
			t.Errorf("%d sessions", w.sink.sessions)
		}
		stopNode()
		stopHub()
		settle()
	})
}

func TestDrainSendsNodesAwayForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		hub, stopHub := w.hub(nil)
		src := newSource(1, "wind")
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "connected", func() bool { return c.State().Connected })
		hub.Drain(t.Context(), link.DrainOrder{Reason: "upgrade", RetryAfter: 30 * time.Second})
		w.until(time.Second, "leave", func() bool { return !c.State().Connected })
		src.put(0, 10, 100)
		d := w.until(2*time.Minute, "return", func() bool { return src.ackedTo(0) == 10 })
		if d < 29*time.Second || d > 50*time.Second {
			t.Errorf("came back after %v, asked were 30 s and a spread of half as much", d)
		}
		stopNode()
		stopHub()
		w.sink.check(t)
		settle()
	})
}

// An order to many nodes is spread over time, and one to some reaches only those.
func TestDrainIsSpreadAndSelective(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lte)
		hub, stopHub := w.hub(nil)
		var stops []func()
		var nodes []*link.Client
		for i := range 4 {
			c, stop := w.node(fmt.Sprint("node-", i), fmt.Sprint("10.0.1.", i+1), newSource(byte(i+1), "wind"), nil)
			nodes, stops = append(nodes, c), append(stops, stop)
		}
		connected := func() (n int) {
			for _, c := range nodes {
				if c.State().Connected {
					n++
				}
			}
			return n
		}
		w.until(10*time.Second, "all connected", func() bool { return connected() == 4 })
		time.Sleep(time.Minute)
		done := make(chan int)
		go func() {
			n, err := hub.Drain(t.Context(), link.DrainOrder{Reason: "upgrade", Nodes: []string{"node-0", "node-1", "node-3", "nobody"}, RetryAfter: time.Hour, Over: 3 * time.Second})
			if err != nil {
				t.Error(err)
			}
			done <- n
		}()
		for i, want := range []int{3, 2, 1} {
			time.Sleep(500 * time.Millisecond)
			if n := connected(); n != want {
				t.Errorf("%d nodes after %d orders, want %d", n, i+1, want)
			}
			time.Sleep(500 * time.Millisecond)
		}
		if n := <-done; n != 3 {
			t.Errorf("%d were told", n)
		}
		if !nodes[2].State().Connected {
			t.Error("node-2 was not named")
		}
		for _, stop := range stops {
			stop()
		}
		stopHub()
		settle()
	})
}

func TestDrainNamesAnotherHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		hub, stopHub := w.hub(nil)
		_, stopOther := w.runHub(w.r.HubConn("10.0.0.2:7443"), nil) // the same store
		src := newSource(1, "wind")
		src.put(0, 10, 100)
		c, stopNode := w.node("node-1", "10.0.1.1", src, nil)
		w.until(5*time.Second, "data at the first", func() bool { return src.ackedTo(0) == 10 })
		hub.Drain(t.Context(), link.DrainOrder{Reason: "upgrade", Hubs: []string{"10.0.0.2:7443"}})
		src.put(0, 10, 100)
		w.until(5*time.Second, "data at the second", func() bool { return src.ackedTo(0) == 20 })
		if st := c.State(); st.Hub != "10.0.0.2:7443" {
			t.Errorf("connected to %s", st.Hub)
		}
		stopNode()
		stopHub()
		stopOther()
		w.sink.check(t)
		settle()
	})
}

func TestLinkUpCutsABackoffShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		src := newSource(1, "wind")
		c, stopNode := w.node("node-1", "10.0.1.1", src, func(c *link.ClientConfig) {
			c.Probe = -1
			c.BackoffMin, c.BackoffMax = 30*time.Minute, time.Hour
		})
		time.Sleep(30 * time.Second) // no hub yet: the first dial failed, the back-off is long
		_, stopHub := w.hub(nil)
		time.Sleep(time.Second)
		if c.State().Connected {
			t.Fatal("connected without being told")
		}
		c.LinkUp()
		w.until(time.Second, "connected", func() bool { return c.State().Connected })
		stopNode()
		stopHub()
		settle()
	})
}
