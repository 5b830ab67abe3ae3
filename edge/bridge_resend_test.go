package edge_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"tailrace/edge"
)

// scripted is a broker of one connection at a time that says what the test wants.
type scripted struct {
	t    *testing.T
	l    net.Listener
	nc   net.Conn
	r    *bufio.Reader
	acks []uint16
}

func newScripted(t *testing.T) *scripted {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &scripted{t: t, l: l}
}

func (s *scripted) read() (byte, []byte) {
	s.t.Helper()
	head, err := s.r.ReadByte()
	if err != nil {
		s.t.Fatal(err)
	}
	n, err := binary.ReadUvarint(s.r)
	if err != nil {
		s.t.Fatal(err)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(s.r, body); err != nil {
		s.t.Fatal(err)
	}
	return head, body
}

type sending struct {
	id      uint16
	payload string
	dup     bool
}

// serve accepts the bridge, sends at once what the session has, and reads so many PUBACKs.
func (s *scripted) serve(present bool, send []sending, acks int) {
	s.t.Helper()
	s.l.(*net.TCPListener).SetDeadline(time.Now().Add(30 * time.Second))
	nc, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.nc, s.r, s.acks = nc, bufio.NewReader(nc), nil
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	s.read() // CONNECT
	p := byte(0)
	if present {
		p = 1
	}
	nc.Write([]byte{0x20, 3, p, 0, 0})
	for _, m := range send {
		head := byte(0x32)
		if m.dup {
			head |= 8
		}
		body := append([]byte("\x00\x01t"), byte(m.id>>8), byte(m.id), 0)
		body = append(body, m.payload...)
		nc.Write(append([]byte{head, byte(len(body))}, body...))
	}
	subscribed := false
	for !subscribed || len(s.acks) < acks {
		switch head, body := s.read(); head >> 4 {
		case 8:
			nc.Write([]byte{0x90, 4, body[0], body[1], 0, 1})
			subscribed = true
		case 4:
			s.acks = append(s.acks, binary.BigEndian.Uint16(body))
		}
	}
}

// The broker sends again what was durable when the connection, or the node, ended.
func TestWhatABrokerSendsAgainIsStoredOnce(t *testing.T) {
	s := newScripted(t)
	// A node that knows nothing of a session that the broker has kept stores everything.
	fresh, end := stoppableNode(t, plain+"default: {stream: s}\nbridges: [{name: hall, brokers: [\"mqtt://"+s.l.Addr().String()+"\"], subscriptions: [{filter: \"#\"}]}]\n", t.TempDir())
	s.serve(true, []sending{{8, "y", true}, {9, "z", true}}, 2)
	if got := strings.Join(values(t, fresh, "s"), ""); got != "yz" {
		t.Errorf("without memory stored %q", got)
	}
	s.nc.Close()
	end()

	dir := t.TempDir()
	yaml := plain + "default: {stream: s}\nbridges: [{name: hall, brokers: [\"mqtt://" + s.l.Addr().String() + "\"], subscriptions: [{filter: \"#\"}]}]\n"
	n, stop := stoppableNode(t, yaml, dir)
	s.serve(false, []sending{{1, "a", false}, {2, "b", false}, {3, "c", false}}, 3)
	s.nc.Close() // the PUBACKs of b and c are lost
	s.serve(true, []sending{{2, "b", true}, {3, "c", true}, {4, "d", true}, {5, "e", false}}, 4)
	if want := []uint16{2, 3, 4, 5}; !slices.Equal(s.acks, want) {
		t.Errorf("acknowledged %d, want %d", s.acks, want)
	}
	var st edge.Status
	if _, body := get(t, n, "/api/v1/status"); json.Unmarshal([]byte(body), &st) != nil || st.Bridges[0].Duplicates != 2 || st.Bridges[0].State != "connected" || st.Bridges[0].Lag != 0 {
		t.Errorf("%+v", st.Bridges)
	}
	s.nc.Close()
	stop()
	n, stop = stoppableNode(t, yaml, dir)
	defer stop()
	// After a restart; a new message with the id and content of an old one is no duplicate.
	s.serve(true, []sending{{5, "e", true}, {6, "f", true}, {1, "a", false}}, 3)
	s.nc.Close()
	// Nothing that was stored last is sent again: a is new, though its content is known.
	s.serve(true, []sending{{2, "b", true}}, 1)
	s.nc.Close()
	// A session that the broker has forgotten: its ids mean nothing.
	s.serve(false, []sending{{2, "b", true}}, 1)
	s.nc.Close()
	// Marked as sent again, but it never came here.
	s.serve(true, []sending{{7, "q", true}}, 1)
	if got := strings.Join(values(t, n, "s"), ""); got != "abcdefabbq" {
		t.Errorf("stored %q", got)
	}
	if st := n.Status().Bridges[0]; st.Duplicates != 1 {
		t.Errorf("%d duplicates after the restart, want 1", st.Duplicates)
	}
	s.nc.Close()
}
