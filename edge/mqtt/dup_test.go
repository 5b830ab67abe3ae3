package mqtt_test

import (
	"fmt"
	"slices"
	"testing"

	"tailrace/edge/mqtt"
)

// msg is one publish in a scenario: packet id and content.
type msg struct {
	id uint16
	c  string
}

func (m msg) pub(v byte, flags ...byte) []byte { return publish(v, 1, m.id, "t/x", m.c, flags...) }

// TestResendIsStoredOnceWhereSequencesLineUp: stored is what reached the disk before
// the connection was cut; resent comes back with DUP; fresh follows without.
func TestResendIsStoredOnceWhereSequencesLineUp(t *testing.T) {
	for _, c := range []struct {
		name                  string
		stored, resent, fresh []msg
		want                  []string // durable at the end
		duplicates, ambiguous uint64
	}{
		{"all that was re-sent is stored", []msg{{1, "a"}, {2, "b"}, {3, "c"}}, []msg{{2, "b"}, {3, "c"}}, []msg{{4, "d"}}, []string{"a", "b", "c", "d"}, 2, 0},
		{"a prefix of the re-sends is the suffix of the stored", []msg{{1, "a"}, {2, "b"}}, []msg{{2, "b"}, {3, "c"}, {4, "d"}}, nil, []string{"a", "b", "c", "d"}, 1, 0},
		{"everything in flight had been stored", []msg{{1, "a"}, {2, "b"}}, []msg{{1, "a"}, {2, "b"}}, nil, []string{"a", "b"}, 2, 0},
		{"nothing of the re-sends is stored", []msg{{1, "a"}, {2, "b"}}, []msg{{3, "c"}, {4, "d"}}, nil, []string{"a", "b", "c", "d"}, 0, 0},
		{"a new message reuses the id", []msg{{1, "a"}}, []msg{{1, "b"}}, nil, []string{"a", "b"}, 0, 0},
		{"a new message reuses id and content without DUP", []msg{{1, "a"}}, nil, []msg{{1, "a"}}, []string{"a", "a"}, 0, 0},
		{"match in the middle does not line up", []msg{{1, "a"}, {2, "b"}, {3, "c"}}, []msg{{2, "b"}, {9, "z"}}, nil, []string{"a", "b", "c", "b", "z"}, 0, 2},
		{"re-sends end before the stored do", []msg{{1, "a"}, {2, "b"}, {3, "c"}}, []msg{{2, "b"}}, []msg{{4, "d"}}, []string{"a", "b", "c", "b", "d"}, 0, 1},
		{"a client that always uses id 1 for the same content", []msg{{1, "0"}, {1, "0"}}, []msg{{1, "0"}}, nil, []string{"0", "0", "0"}, 0, 1},
		{"same, but one of the overlap is proof", []msg{{1, "0"}, {2, "0"}, {1, "0"}, {2, "7"}}, []msg{{1, "0"}, {2, "7"}}, nil, []string{"0", "0", "0", "7"}, 2, 0},
		{"two possible starts, the longer one lines up", []msg{{1, "a"}, {2, "b"}, {1, "a"}, {3, "c"}}, []msg{{1, "a"}, {3, "c"}, {4, "d"}}, nil, []string{"a", "b", "a", "c", "d"}, 2, 0},
	} {
		for _, v := range []byte{4, 5} {
			for _, restart := range []bool{false, true} {
				for _, oneByOne := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/v=%d/restart=%v/single=%v", c.name, v, restart, oneByOne), func(t *testing.T) {
						b := newBackend()
						w := newWorld(t, b, nil)
						d, _ := w.login(v, opts{id: "dev", persistent: true})
						for _, m := range c.stored {
							d.send(m.pub(v))
							d.want(puback(m.id))
						}
						d.nc.Close()
						if restart { // kill -9 between fsync and PUBACK
							w.stop()
							b = b.restart()
							w = newWorld(t, b, nil)
						}
						d, present := w.login(v, opts{id: "dev", persistent: true})
						if !present {
							t.Fatal("session not present")
						}
						var acks [][]byte
						var all []byte
						for _, m := range c.resent {
							p := m.pub(v, fDup)
							if oneByOne {
								d.send(p)
							}
							all = append(all, p...)
							acks = append(acks, puback(m.id))
						}
						if !oneByOne {
							d.send(all)
						}
						for _, m := range c.fresh {
							d.send(m.pub(v))
							acks = append(acks, puback(m.id))
						}
						d.want(acks...)
						if got := b.payloads(); !slices.Equal(got, c.want) {
							t.Errorf("durable %q, want %q", got, c.want)
						}
						if st := w.s.Stats(); st.Duplicates != c.duplicates || st.Ambiguous != c.ambiguous {
							t.Errorf("duplicates %d ambiguous %d, want %d %d", st.Duplicates, st.Ambiguous, c.duplicates, c.ambiguous)
						}
					})
				}
			}
		}
	}
}

// TestResendsThatBeginBeforeTheWindow: the client has more in flight than the window
// holds, so the whole window lies inside its re-sends.
func TestResendsThatBeginBeforeTheWindow(t *testing.T) {
	for _, c := range []struct {
		name                  string
		first                 uint16 // packet id of the first stored
		resend                []int  // indices of what is re-sent, 0 = first stored, 10 = first new
		want                  int    // records at the end
		duplicates, ambiguous uint64
	}{
		{"all stored", 1, []int{2, 3, 4, 5, 6, 7, 8, 9}, 10, 8, 0},
		{"some new behind them", 1, []int{2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 12, 8, 0},
		{"packet ids wrap", 65530, []int{2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 12, 8, 0},
		{"none stored", 1, []int{10, 11, 12}, 13, 0, 0},
		{"a hole", 1, []int{2, 3, 4, 5, 6, 7, 9, 10}, 18, 0, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBackend()
			w := newWorld(t, b, func(c *mqtt.Config) { c.Limits.ReceiveMaximum = 4; c.Limits.Window = 4 })
			d, _ := w.login(4, opts{id: "dev", persistent: true})
			id := func(i int) uint16 {
				n := int(c.first) + i
				if n > 65535 {
					n -= 65535
				}
				return uint16(n)
			}
			for i := range 10 {
				d.send(publish(4, 1, id(i), "t", fmt.Sprint(i)))
				d.want(puback(id(i)))
			}
			d.nc.Close()
			d, _ = w.login(4, opts{id: "dev", persistent: true})
			var acks [][]byte
			for _, i := range c.resend {
				d.send(publish(4, 1, id(i), "t", fmt.Sprint(i), fDup))
				acks = append(acks, puback(id(i)))
			}
			d.want(acks...)
			if got := b.payloads(); len(got) != c.want {
				t.Errorf("durable %q, want %d", got, c.want)
			}
			if st := w.s.Stats(); st.Duplicates != c.duplicates || st.Ambiguous != c.ambiguous {
				t.Errorf("duplicates %d ambiguous %d, want %d %d", st.Duplicates, st.Ambiguous, c.duplicates, c.ambiguous)
			}
		})
	}
}

// TestResendsThatStopAreStoredInTheEnd: half of the stored suffix comes back and
// then nothing; the device must not wait for ever.
func TestResendsThatStopAreStoredInTheEnd(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(4, opts{id: "dev", persistent: true})
	d.send(publish(4, 1, 1, "t", "a"), publish(4, 1, 2, "t", "b"))
	d.want(puback(1), puback(2))
	d.nc.Close()
	d, _ = w.login(4, opts{id: "dev", persistent: true})
	d.send(publish(4, 1, 1, "t", "a", fDup), publish(4, 0, 0, "t", "zero"))
	d.silent()
	d.want(puback(1))
	if got := b.payloads(); !slices.Equal(got, []string{"a", "b", "a", "zero"}) {
		t.Errorf("durable %q", got)
	}
}

func TestCleanStartForgetsTheWindow(t *testing.T) {
	b := newBackend()
	w := newWorld(t, b, nil)
	d, _ := w.login(5, opts{id: "dev", persistent: true})
	d.send(publish(5, 1, 1, "t", "a"))
	d.want(puback(1))
	d.nc.Close()
	d, present := w.login(5, opts{id: "dev", persistent: true, clean: true})
	if present {
		t.Fatal("session present after clean start")
	}
	d.send(publish(5, 1, 1, "t", "a", fDup))
	d.want(puback(1))
	if got := b.payloads(); !slices.Equal(got, []string{"a", "a"}) {
		t.Errorf("durable %q", got)
	}
}

// TestQoS2IdIsDurableUntilPubrel: the same id is the same message, over a restart.
func TestQoS2IdIsDurableUntilPubrel(t *testing.T) {
	eachVersion(t, func(t *testing.T, v byte) {
		b := newBackend()
		w := newWorld(t, b, nil)
		d, _ := w.login(v, opts{id: "dev", persistent: true})
		d.send(publish(v, 2, 7, "t", "a"))
		d.want(pubrec(7))
		w.stop()
		b = b.restart()
		w = newWorld(t, b, nil)
		d, _ = w.login(v, opts{id: "dev", persistent: true})
		d.send(publish(v, 2, 7, "t", "a", fDup), pubrel(7))
		d.want(pubrec(7), pubcomp(7))
		w.stop()
		b = b.restart()
		w = newWorld(t, b, nil)
		d, _ = w.login(v, opts{id: "dev", persistent: true})
		d.send(publish(v, 2, 7, "t", "b"))
		d.want(pubrec(7))
		if got := b.payloads(); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("durable %q", got)
		}
	})
}

func TestFoldWindowKeepsTheNewest(t *testing.T) {
	delta := []byte{0, 3}
	for i := byte(1); i <= 5; i++ {
		delta = append(delta, 1, 0, i, 0, 0, 0, 0, 0, 0, 0, i)
	}
	w := mqtt.FoldWindow(nil, delta)
	want := []byte{1, 0, 0}
	for i := byte(3); i <= 5; i++ {
		want = append(want, 0, i, 0, 0, 0, 0, 0, 0, 0, i)
	}
	if !slices.Equal(w, want) {
		t.Fatalf("got %x", w)
	}
	// received 7 and 8, released 7, then one more entry pushes out the oldest.
	w = mqtt.FoldWindow(w, []byte{0, 3, 2, 0, 7, 2, 0, 8, 3, 0, 7, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 6})
	if w[2] != 1 || w[4] != 8 || w[len(w)-1] != 6 || len(w) != 5+30 || w[6] != 4 {
		t.Fatalf("got %x", w)
	}
	if w = mqtt.FoldWindow(w, []byte{0, 3, 4}); !slices.Equal(w, []byte{1, 0, 0}) {
		t.Fatalf("after reset: %x", w)
	}
}

func FuzzFoldWindow(f *testing.F) {
	f.Add([]byte{1, 0, 1, 0, 7}, []byte{0, 3, 2, 0, 7})
	f.Add([]byte{}, []byte{0, 3, 1, 0, 7})
	f.Fuzz(func(t *testing.T, old, delta []byte) {
		w := mqtt.FoldWindow(old, delta)
		if len(w) > len(old)+len(delta)+3 {
			t.Fatalf("grew to %d", len(w))
		}
		mqtt.FoldWindow(w, delta)
	})
}
