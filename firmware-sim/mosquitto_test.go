package firmwaresim_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/ledger"
	"tailrace/firmware-sim/rawload"
)

// mosquitto starts a real broker on a free port.
func mosquitto(t *testing.T) (addr string) {
	t.Helper()
	exe, err := exec.LookPath("mosquitto")
	if err != nil {
		exe = "/usr/sbin/mosquitto"
	}
	if _, err := os.Stat(exe); err != nil {
		t.Fatal("mosquitto is needed for this test: apt-get install mosquitto")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = ln.Addr().String()
	ln.Close()
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(t.TempDir(), "mosquitto.conf")
	text := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\n", port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-c", conf)
	said, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var all strings.Builder
	for lines := bufio.NewScanner(said); lines.Scan(); {
		if strings.HasSuffix(lines.Text(), " running") {
			go io.Copy(io.Discard, said)
			return addr
		}
		fmt.Fprintln(&all, lines.Text())
	}
	t.Fatalf("mosquitto does not run:\n%s", all.String())
	return ""
}

// A real broker hands a subscriber exactly what the devices say they sent.
func TestMosquittoGetsWhatTheDevicesSend(t *testing.T) {
	addr := mosquitto(t)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	type received struct {
		topic   string
		payload []byte
	}
	got := make(chan received, 1<<16)
	sub := paho.NewClient(paho.ClientConfig{Conn: conn, OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(p paho.PublishReceived) (bool, error) {
			got <- received{p.Packet.Topic, p.Packet.Payload}
			return true, nil
		}}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := sub.Connect(ctx, &paho.Connect{ClientID: "witness", CleanStart: true, KeepAlive: 60}); err != nil {
		t.Fatal(err)
	}
	defer sub.Disconnect(&paho.Disconnect{})
	var subs []paho.SubscribeOptions
	for _, topic := range []string{"site/#", "factory/#", "load/#"} {
		subs = append(subs, paho.SubscribeOptions{Topic: topic, QoS: 1})
	}
	if _, err := sub.Subscribe(ctx, &paho.Subscribe{Subscriptions: subs}); err != nil {
		t.Fatal(err)
	}

	book := ledger.New()
	recorded, err := firmwaresim.Recorded("res-marge", 100)
	if err != nil {
		t.Fatal(err)
	}
	machines := firmwaresim.FactoryLine("l", 6)
	for i := range machines {
		machines[i].Encoding = firmwaresim.CBOR
	}
	fleet, err := firmwaresim.New(firmwaresim.Config{Dial: firmwaresim.DialTCP(addr, nil), Pace: firmwaresim.MaxPace, Limit: 100, Ledger: book,
		Devices: append(append(recorded, firmwaresim.WindFarm("w", 10)...), machines...)})
	if err != nil {
		t.Fatal(err)
	}
	if err := fleet.Run(ctx); err != nil {
		t.Fatal(err)
	}
	// 25 devices of 100 readings, and two status messages each.
	if s := fleet.Stats(); s.Acked != 25*102 || s.Samples != 2500 || s.Done != 25 || s.Connects != 25 || s.Refused != 0 {
		t.Fatalf("%+v", s)
	}
	for _, version := range []byte{4, 5} {
		r, err := rawload.Run(ctx, rawload.Config{Dial: rawload.DialTCP(addr, nil), Version: version, QoS: 1, Clients: 4, Count: 250,
			ClientPrefix: fmt.Sprintf("v%d", version), Ledger: book})
		if err != nil || r.Acked != 1000 {
			t.Fatalf("%+v %v", r, err)
		}
	}
	const want = 25*102 + 2000
	o := book.Observe("mosquitto subscriber")
	for range want {
		select {
		case m := <-got:
			o.SeePayload(m.topic, m.payload, ledger.NoPosition)
		case <-ctx.Done():
			t.Fatalf("not all arrived: %v", o.Report())
		}
	}
	if r := o.Report(); !r.OK() || r.Delivered != want || r.Unknown != 0 {
		t.Fatal(r)
	}
}
