package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// subscriber keeps over connections what a client must: the QoS 2 ids received and not released.
type subscriber struct {
	id, filter string
	qos        byte
	open       map[uint16]bool
	got        map[string]int
	*rawClient
}

func (s *subscriber) packet() (head byte, body []byte, err error) {
	if head, err = s.r.ReadByte(); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(s.r)
	if err != nil {
		return 0, nil, err
	}
	body = make([]byte, n)
	_, err = io.ReadFull(s.r, body)
	return head, body, err
}

// step handles one packet; mute leaves a message without an answer.
func (s *subscriber) step(wait time.Duration, mute bool) bool {
	s.t.Helper()
	s.c.SetReadDeadline(time.Now().Add(wait))
	if _, err := s.r.Peek(1); err != nil {
		return false
	}
	s.c.SetReadDeadline(time.Now().Add(30 * time.Second))
	head, body, err := s.packet()
	if err != nil {
		s.t.Fatalf("%s: %v", s.id, err)
	}
	switch head >> 4 {
	case 3:
		n := 2 + int(binary.BigEndian.Uint16(body))
		id := binary.BigEndian.Uint16(body[n:])
		if !s.open[id] {
			s.open[id] = s.qos == 2
			s.got[string(body[n+2:])]++
		}
		if !mute {
			s.c.Write([]byte{map[byte]byte{1: 0x40, 2: 0x50}[s.qos], 2, byte(id >> 8), byte(id)})
		}
	case 6:
		delete(s.open, binary.BigEndian.Uint16(body))
		s.c.Write([]byte{0x70, 2, body[0], body[1]})
	default:
		s.t.Fatalf("%s got % x % x", s.id, head, body)
	}
	return true
}

// The node is killed -9 while subscribers are away and while they take what waited for them: nothing
// is lost, to a shared subscription neither, and at QoS 2 nothing comes twice.
func TestOfflineQueuesSurviveKillNine(t *testing.T) {
	kills, per := 8, 60
	if testing.Short() {
		kills = 4
	}
	d := newDaemon(t, "")
	d.start()
	shared := map[string]int{}
	subs := []*subscriber{{id: "one", filter: "q/#", qos: 1, got: map[string]int{}}, {id: "two", filter: "q/#", qos: 2, got: map[string]int{}},
		{id: "m1", filter: "$share/g/q/#", qos: 2, got: shared}, {id: "m2", filter: "$share/g/q/#", qos: 2, got: shared}}
	for _, s := range subs {
		s.open = map[uint16]bool{}
		s.rawClient = d.connect(s.id)
		body := append([]byte{0, 1, 0, byte(len(s.filter))}, s.filter...)
		s.c.Write(append([]byte{0x82, byte(len(body) + 1)}, append(body, s.qos)...))
		if head, body, err := s.packet(); err != nil || head != 0x90 || body[2] != s.qos {
			t.Fatalf("SUBACK % x % x, %v", head, body, err)
		}
		s.c.Close()
	}
	host, port, _ := net.SplitHostPort(d.mqtt)
	published := 0
	for k := range kills {
		var lines strings.Builder
		for range per {
			fmt.Fprintf(&lines, "m%d\n", published)
			published++
		}
		pub := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-i", "source", "-q", "2", "-t", "q/a", "-l")
		pub.Stdin = strings.NewReader(lines.String())
		if out, err := pub.CombinedOutput(); err != nil { // it ends when all is acknowledged
			t.Fatalf("mosquitto_pub (apt-get install mosquitto-clients): %v\n%s", err, out)
		}
		if k%2 == 1 { // some lives have subscribers that break off anywhere
			for _, s := range subs {
				s.rawClient = d.connect(s.id)
				if !s.present {
					t.Fatalf("%s: the session is forgotten", s.id)
				}
			}
			for range rand.IntN(40) {
				for _, s := range subs {
					s.step(20*time.Millisecond, rand.IntN(4) == 0)
				}
			}
		}
		d.kill()
		for _, s := range subs {
			s.c.Close()
		}
		d.start()
	}
	for _, s := range subs {
		s.rawClient = d.connect(s.id)
		if !s.present {
			t.Fatalf("%s: the session is forgotten", s.id)
		}
	}
	complete := func() bool {
		for _, s := range subs {
			if len(s.got) < published || s.qos == 2 && len(s.open) > 0 {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(time.Minute); !complete() && time.Now().Before(end); {
		for _, s := range subs {
			s.step(time.Millisecond, false)
		}
	}
	for _, s := range subs { // what would come too much
		for s.step(200*time.Millisecond, false) {
		}
		s.c.Close()
	}
	again := 0
	for _, s := range subs[:3] {
		lost := 0
		for i := range published {
			switch n := s.got[fmt.Sprint("m", i)]; {
			case n == 0:
				lost++
			case n > 1 && s.qos == 2:
				t.Errorf("%s: message %d came %d times", s.id, i, n)
			case n > 1:
				again += n - 1
			}
		}
		if lost > 0 {
			t.Errorf("%s: %d of %d messages are lost", s.id, lost, published)
		}
	}
	t.Logf("%d kills, %d messages to each of four subscribers, two of them sharing; %d again at QoS 1", kills, published, again)
}
