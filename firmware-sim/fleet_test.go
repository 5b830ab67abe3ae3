package firmwaresim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	firmwaresim "tailrace/firmware-sim"
	"tailrace/firmware-sim/data"
	"tailrace/firmware-sim/internal/brokertest"
)

// What a broker receives is the source's rows: count, order, times and values,
// in JSON to the letter, through the whole firmware.
func TestReplayedRowsArriveExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, set := range []string{"res-marge", "hill-of-towie", "machine-temperature"} {
			s, _ := data.Lookup(set)
			tab, err := s.Open()
			if err != nil {
				t.Fatal(err)
			}
			const rows = 60
			devices, _ := firmwaresim.Recorded(set, rows)
			if set == "res-marge" {
				devices[0].Encoding = firmwaresim.CBOR // one sends CBOR; compared by value
			}
			w := start(t, &brokertest.Broker{}, firmwaresim.Config{Devices: devices, Pace: firmwaresim.MaxPace})
			r, st := w.wait()
			w.ok(r)
			if st.Done != int64(len(devices)) || st.Dropped != 0 || st.Samples != int64(rows*len(devices)) {
				t.Fatalf("%+v", st)
			}
			for _, d := range devices {
				got := telemetry(w.b.Log(), d.Topic("telemetry"))
				if len(got) != rows {
					t.Fatalf("%s sent %d rows", d.ID, len(got))
				}
				for i, p := range got {
					row := tab.DeviceRow(d.ID, i)
					at, _ := row.Time()
					m := decode(t, p.Payload)
					if fmt.Sprint(m["ts"]) != fmt.Sprint(at.UnixMilli()) || fmt.Sprint(m["seq"]) != fmt.Sprint(i+1) {
						t.Fatalf("%s row %d: ts %v seq %v, recorded at %d", d.ID, i, m["ts"], m["seq"], at.UnixMilli())
					}
					if d.Encoding == firmwaresim.CBOR {
						continue
					}
					var want []string
					row.Signals(func(name string, v []byte) {
						switch text := string(v); {
						case text == "":
							want = append(want, fmt.Sprintf("%q:null", name))
						case strings.Trim(text, "-.0123456789") == "":
							want = append(want, fmt.Sprintf("%q:%s", name, text))
						default:
							want = append(want, fmt.Sprintf("%q:%q", name, text))
						}
					})
					if got := string(p.Payload); !strings.HasSuffix(got, `"signals":{`+strings.Join(want, ",")+"}}") {
						t.Fatalf("%s row %d: %s\nwant signals %s", d.ID, i, got, want)
					}
				}
			}
		}
	})
}

func TestCBORAndJSONSayTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs [2][]brokertest.Publish
		for i, enc := range []firmwaresim.Encoding{firmwaresim.JSON, firmwaresim.CBOR} {
			devices, _ := firmwaresim.Recorded("hill-of-towie", 30)
			devices = devices[:1]
			devices[0].Encoding = enc
			w := start(t, &brokertest.Broker{}, firmwaresim.Config{Devices: devices, Pace: firmwaresim.MaxPace, Run: 7})
			r, _ := w.wait()
			w.ok(r)
			logs[i] = telemetry(w.b.Log(), devices[0].Topic("telemetry"))
		}
		for i := range logs[0] {
			a, b := decode(t, logs[0][i].Payload), decode(t, logs[1][i].Payload)
			sa, sb := a["signals"].(map[string]any), b["signals"].(map[any]any)
			if len(sa) != len(sb) || fmt.Sprint(a["ts"], a["boot"], a["seq"]) != fmt.Sprint(b["ts"], b["boot"], b["seq"]) {
				t.Fatalf("row %d: %v\n%v", i, a, b)
			}
			for k, v := range sa {
				if fmt.Sprint(v) != fmt.Sprint(sb[k]) {
					t.Fatalf("row %d: %s is %v and %v", i, k, v, sb[k])
				}
			}
		}
	})
}

func TestAFleetIsDeterministicBySeed(t *testing.T) {
	run := func(seed uint64) string {
		var out string
		synctest.Test(t, func(t *testing.T) {
			d := append(firmwaresim.WindFarm("w", 3), firmwaresim.FactoryLine("l", 3)...)
			w := start(t, &brokertest.Broker{}, firmwaresim.Config{Devices: d, Seed: seed, Limit: 20, NoRTC: .5})
			r, _ := w.wait()
			w.ok(r)
			for _, x := range d { // order between devices is chance
				for _, p := range telemetry(w.b.Log(), x.Topic("telemetry")) {
					out += string(p.Payload)
				}
			}
		})
		return out
	}
	a := run(3)
	if b := run(3); a != b || len(a) == 0 {
		t.Error("one seed, two runs")
	}
	if a == run(4) {
		t.Error("two seeds, one run")
	}
}

func TestAFullRingDropsTheOldestAndSaysHowMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &brokertest.Broker{}
		b.SetDown(true)
		d := firmwaresim.WindFarm("w", 1)
		w := start(t, b, firmwaresim.Config{Devices: d, Ring: 16, BackOffMax: time.Second})
		time.Sleep(100 * time.Second)
		b.SetDown(false)
		time.Sleep(20 * time.Second)
		r, s := w.end()
		w.ok(r)
		got := telemetry(b.Log(), d[0].Topic("telemetry"))
		if s.Dropped < 80 || s.Samples != s.Dropped+int64(len(got)) {
			t.Fatalf("%d received, %+v", len(got), s)
		}
		last := 0
		for i, p := range got {
			var m struct {
				Seq, Drop int
			}
			_ = json.Unmarshal(p.Payload, &m)
			if i == 0 && m.Seq != int(s.Dropped)+1 || i > 0 && m.Seq != last+1 {
				t.Fatalf("message %d has sequence %d after %d; %d were dropped", i, m.Seq, last, s.Dropped)
			}
			// A reading made while the ring was full says how many went before it.
			if m.Drop != min(max(m.Seq-16, 0), int(s.Dropped)) {
				t.Fatalf("sequence %d says %d dropped", m.Seq, m.Drop)
			}
			last = m.Seq
		}
	})
}

func TestUnackedIsSentAgainInOrderWithDup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drop, n := once(), 0
		var mu sync.Mutex
		b := &brokertest.Broker{Decide: func(p brokertest.Publish) brokertest.Verdict {
			mu.Lock()
			defer mu.Unlock()
			if n++; n%37 == 0 { // stored, connection lost before the ack
				return brokertest.Verdict{NoAck: true, HangUp: true, NotKept: drop(p)}
			}
			return brokertest.Verdict{NotKept: drop(p)}
		}}
		w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 5), Limit: 400, Lossless: true, Pace: 20, BackOffMax: time.Second})
		r, s := w.wait()
		w.ok(r)
		if s.Resent < 20 || s.SessionsLost != 0 || s.Connects < 20 || r.Lost != 0 || r.Unknown != 0 || s.Acked < 2000 {
			t.Fatalf("%+v", s)
		}
	})
}

// A server that stores a re-send twice is caught: the device books DUP as DUP.
func TestAStoredResendIsADuplicate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		b := &brokertest.Broker{Decide: func(brokertest.Publish) brokertest.Verdict {
			n++
			return brokertest.Verdict{NoAck: n == 30, HangUp: n == 30}
		}}
		w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 1), Limit: 60})
		if r, _ := w.wait(); r.Duplicate != 1 || len(r.Faults()) != 1 {
			t.Fatal(r)
		}
	})
}

func TestAForgottenSessionLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		var mu sync.Mutex
		b := &brokertest.Broker{}
		b.Decide = func(p brokertest.Publish) brokertest.Verdict {
			mu.Lock()
			defer mu.Unlock()
			switch n++; {
			case n%50 == 0:
				b.Forget()
				return brokertest.Verdict{NoAck: true, NotKept: true, HangUp: true}
			case n%50 > 46: // several are in flight then, and not stored: their order shows
				return brokertest.Verdict{NoAck: true, NotKept: true}
			}
			return brokertest.Verdict{}
		}
		w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 1), Limit: 400, Lossless: true, Pace: 20, BackOffMax: time.Second})
		r, s := w.wait()
		w.ok(r)
		if s.SessionsLost < 5 || r.Unknown != 0 {
			t.Fatalf("%+v %v", s, r)
		}
	})
}

func TestABrownOutLosesTheRAMAndStartsANewBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &brokertest.Broker{}
		w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 4), BrownOuts: time.Minute, Drain: time.Minute})
		time.Sleep(10 * time.Minute)
		r, s := w.end()
		w.ok(r)
		if s.BrownOuts < 15 || s.Boots < s.BrownOuts || s.SessionsLost != 0 {
			t.Fatalf("%+v", s)
		}
		if r.Wills < uint64(s.BrownOuts)/2 {
			t.Errorf("%d power losses, %d wills", s.BrownOuts, r.Wills)
		}
		first := map[string]bool{}
		boots := 0
		for _, p := range b.Log() {
			var m struct {
				Boot, Reason string
				Seq          int
				Will         bool
			}
			_ = json.Unmarshal(p.Payload, &m)
			if k := p.Topic + m.Boot; !m.Will && !first[k] {
				first[k] = true
				if m.Seq != 1 || strings.HasSuffix(p.Topic, "status") && m.Reason != "power-on" {
					t.Fatalf("a boot begins with %s", p.Payload)
				}
				if strings.HasSuffix(p.Topic, "status") {
					boots++
				}
			}
		}
		if boots < 15 {
			t.Errorf("%d boots announced", boots)
		}
	})
}

func TestReconnectBacksOffWithJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var at []time.Duration
		begin := time.Now()
		d := firmwaresim.WindFarm("w", 20)
		w := start(t, &brokertest.Broker{}, firmwaresim.Config{Devices: d, Dial: func(context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Since(begin))
			return nil, fmt.Errorf("no route")
		}})
		time.Sleep(time.Hour)
		w.stop()
		<-w.done
		// Uniform in (0, 1 min): 30 s on average, so 120 an hour each.
		if n := len(at) / len(d); n < 90 || n > 150 {
			t.Errorf("%d attempts a device in an hour", n)
		}
		perSecond := map[time.Duration]int{}
		for _, x := range at {
			if x > 10*time.Minute {
				perSecond[x/time.Second]++
			}
		}
		for sec, n := range perSecond {
			if n > 8 {
				t.Errorf("%d of 20 devices dial in second %d", n, sec)
			}
		}
	})
}

func TestADeviceWithoutClockSaysSoUntilItIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(1000 * time.Hour) // synctest starts at the very time a clock without battery does
		d := firmwaresim.WindFarm("w", 2)
		d[0].NoRTC = true
		w := start(t, &brokertest.Broker{}, firmwaresim.Config{Devices: d, Limit: 7000, DriftPPM: 50})
		r, _ := w.wait()
		w.ok(r)
		year2000 := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
		unknown := 0
		for i, p := range telemetry(w.b.Log(), d[0].Topic("telemetry")) {
			var m struct {
				TS, Up int64
				Clk    string
			}
			_ = json.Unmarshal(p.Payload, &m)
			if m.Clk == "none" {
				unknown++
				if m.TS-year2000 > 60_000 || m.TS < year2000 || m.Up > 60_000 || i > 25 {
					t.Fatalf("reading %d: %s", i, p.Payload)
				}
			}
		}
		if unknown < 15 {
			t.Errorf("%d readings without a clock", unknown)
		}
		// The other device's clock against true time.
		worst := int64(0)
		got := telemetry(w.b.Log(), d[1].Topic("telemetry"))
		for i := 1; i < len(got); i++ {
			var a, b struct{ TS int64 }
			_ = json.Unmarshal(got[0].Payload, &a)
			_ = json.Unmarshal(got[i].Payload, &b)
			worst = max(worst, abs(b.TS-a.TS-int64(i)*1000))
		}
		if worst == 0 || worst > 1500 {
			t.Errorf("drift of %d ms in two hours", worst)
		}
	})
}

func abs(x int64) int64 { return max(x, -x) }

func TestStatusAndWill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &brokertest.Broker{}
		d := firmwaresim.WindFarm("w", 1)
		w := start(t, b, firmwaresim.Config{Devices: d})
		time.Sleep(10 * time.Second)
		b.Cut()
		time.Sleep(10 * time.Second)
		r, _ := w.end()
		w.ok(r)
		var got []string
		for _, p := range telemetry(b.Log(), d[0].Topic("status")) {
			var m struct {
				Reason       string
				Online, Will bool
			}
			_ = json.Unmarshal(p.Payload, &m)
			got = append(got, fmt.Sprintf("%s online=%v will=%v retain=%v", m.Reason, m.Online, m.Will, p.Retain))
		}
		want := "power-on online=true will=false retain=true|" + " online=false will=true retain=true|" +
			"reconnect online=true will=false retain=true|" + "switched off online=false will=false retain=true"
		if strings.Join(got, "|") != want {
			t.Fatalf("%q", got)
		}
	})
}

func TestTheWindowIsKept(t *testing.T) {
	for _, receive := range []uint16{0, 4} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			n := 0
			b := &brokertest.Broker{ReceiveMaximum: receive, Decide: func(p brokertest.Publish) brokertest.Verdict {
				mu.Lock()
				defer mu.Unlock()
				n++
				return brokertest.Verdict{NoAck: true}
			}}
			w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 1), Window: 8})
			time.Sleep(25 * time.Second) // before the ack timeout
			want := 8
			if receive > 0 {
				want = int(receive) - 1
			}
			mu.Lock()
			if n != want {
				t.Errorf("receive maximum %d: %d in flight, want %d", receive, n, want)
			}
			mu.Unlock()
			w.end()
		})
	}
}

func TestSilenceMakesADeviceReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drop, deaf := once(), true
		var mu sync.Mutex
		b := &brokertest.Broker{Decide: func(p brokertest.Publish) brokertest.Verdict {
			mu.Lock()
			defer mu.Unlock()
			return brokertest.Verdict{NoAck: deaf, NotKept: drop(p)}
		}}
		w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 1), AckTimeout: 20 * time.Second})
		time.Sleep(90 * time.Second)
		mu.Lock()
		deaf = false
		mu.Unlock()
		time.Sleep(60 * time.Second)
		r, s := w.end()
		w.ok(r)
		if s.Connects < 3 || s.Resent < 8 || r.Unknown != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestARefusedReadingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		var mu sync.Mutex
		b := &brokertest.Broker{Decide: func(p brokertest.Publish) brokertest.Verdict {
			mu.Lock()
			defer mu.Unlock()
			if n++; n%10 == 0 {
				return brokertest.Verdict{Code: 0x97}
			}
			return brokertest.Verdict{}
		}}
		refused := 0
		w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 1), Limit: 100,
			OnOutcome: func(_ firmwaresim.Message, o firmwaresim.Outcome) {
				mu.Lock()
				defer mu.Unlock()
				if !o.Acked && o.Reason == 0x97 {
					refused++
				}
			}})
		r, s := w.wait()
		w.ok(r)
		if s.Refused != 10 || refused != 10 || s.LastRefusal != 0x97 {
			t.Fatalf("%d %+v", refused, s)
		}
	})
}

func TestIntentComesBeforeTheWireAndEveryMessageHasOneOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		state := map[string]int{}
		b := &brokertest.Broker{Decide: func(p brokertest.Publish) brokertest.Verdict {
			mu.Lock()
			defer mu.Unlock()
			if state[string(p.Payload)] == 0 {
				t.Errorf("on the wire before its intent: %s", p.Payload)
			}
			return brokertest.Verdict{}
		}}
		w := start(t, b, firmwaresim.Config{Devices: firmwaresim.WindFarm("w", 3), BrownOuts: 30 * time.Second,
			OnIntent: func(m firmwaresim.Message) { mu.Lock(); state[string(m.Payload)]++; mu.Unlock() },
			OnOutcome: func(m firmwaresim.Message, _ firmwaresim.Outcome) {
				mu.Lock()
				state[string(m.Payload)] += 10
				mu.Unlock()
			}})
		time.Sleep(5 * time.Minute)
		r, _ := w.end()
		w.ok(r)
		for p, n := range state {
			if n != 11 {
				t.Errorf("%d intents, %d outcomes: %s", n%10, n/10, p)
			}
		}
	})
}

func TestNonsenseHarmsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &brokertest.Broker{}
		d := append(firmwaresim.WindFarm("w", 2), firmwaresim.Nonsense(5)...)
		w := start(t, b, firmwaresim.Config{Devices: d, DriftPPM: -1})
		time.Sleep(10 * time.Minute)
		r, s := w.end()
		if !r.OK() || s.Nonsense < 1000 || s.Connects != 2 {
			t.Fatalf("%v %+v", r, s)
		}
		kinds := map[string]bool{}
		for _, v := range b.Violations() {
			_, what, _ := strings.Cut(v, ": ")
			kinds[fmt.Sprintf("%.25s", what)] = true
		}
		if len(kinds) < 8 {
			t.Errorf("the broker noticed only %v", kinds)
		}
	})
}

func TestPaceScalesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		d, _ := firmwaresim.Recorded("res-marge", 25)
		w := start(t, &brokertest.Broker{}, firmwaresim.Config{Devices: d, Pace: 60})
		w.wait()
		// 25 rows of ten minutes at 60: ten seconds each, the first within ten seconds.
		if took := time.Since(begin); took < 240*time.Second || took > 252*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestConfigSaysAllThatIsWrong(t *testing.T) {
	_, err := firmwaresim.New(firmwaresim.Config{Window: -1, Ring: -1, Pace: -2, NoRTC: 3,
		Devices: []firmwaresim.Device{{Site: "a/b", ID: "x", Interval: 1}, {Site: "a", ID: "x"}, {Site: "a", ID: "x", Interval: 1}}})
	for _, part := range []string{"dialer", "window", "ring", "pace", "clock", "a/b", "interval", "two devices"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not mention %s", err, part)
		}
	}
}
