package uplink_test

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tailrace/uplink"
	"tailrace/uplink/link/linktest"
	"tailrace/uplink/ranges"
	"tailrace/uplink/wire"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata/*.txt")

// A script is a list of
//
//	command key=value ...
//	----
//	expected output
//
// blocks, separated by an empty line; lines that begin with # are comments. It drives
// a Sender over a log of batches and a Receiver over a store, message by message.
//
//	node topic=T start=N next=N batch=N [prio=N] [mode=N] [fork=N]   a partition; fork: the second epoch begins there
//	held topic=T set=[a,b)... [epoch=N] [last=OFFSET] [crc=N]        what the hub holds
//	connect [window=N] [credit=live,backfill,bulk]                   hello, welcome, wants
//	ask topic=T set=... [lane=N] [rate=N]                            the hub asks on demand
//	next lane=L                                                      what would be read (and is then under way)
//	send lane=L [conn=N] [max=N]                                     read the next and write it: frame fN
//	recv f=N                                                         the frame arrives: deliveries dN
//	store d=N                                                        it is durable; the ack travels back
//	declare                                                          proposed gaps are committed; the ack travels back
//	append topic=T n=N      the node's log grows by N batches
//	evict topic=T to=N [say=no]   the node frees below; say: it explains
//	swap topic=T            the node's bytes are others now
//	fail on|off             reads fail
//	floor live=N bulk=N     what has a lower priority waits; not said: no floor
//	retry, cut conn=N, cancel want=N, sleep d=D, state
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { runScript(t, f) })
	}
}

func runScript(t *testing.T, file string) {
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w := &scriptWorld{now: time.Unix(0, 0), parts: map[string]*scriptPart{}}
	var out bytes.Buffer
	sc := bufio.NewScanner(bytes.NewReader(src))
	skipping := false
	for sc.Scan() {
		line := sc.Text()
		if skipping {
			if line != "" {
				continue
			}
			skipping = false
		}
		if line == "" || strings.HasPrefix(line, "#") {
			fmt.Fprintln(&out, line)
			continue
		}
		if line == "----" {
			skipping = true
			continue
		}
		fmt.Fprintln(&out, line)
		fmt.Fprintln(&out, "----")
		w.out.Reset()
		w.command(line)
		out.Write(w.out.Bytes())
	}
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(src, out.Bytes()) {
		a, b := strings.Split(string(src), "\n"), strings.Split(out.String(), "\n")
		for i := range a {
			if i >= len(b) || a[i] != b[i] {
				t.Fatalf("%s:%d:\nwant %s\nhave %s\n(run with -update and look at the difference)", file, i+1, a[i], strings.Join(b[min(i, len(b)):min(i+8, len(b))], "\n     "))
			}
		}
		t.Fatalf("%s: more output than expected", file)
	}
}

type scriptWorld struct {
	out      bytes.Buffer
	now      time.Time
	parts    map[string]*scriptPart
	order    []string
	forked   bool
	progress []uplink.Progress
	s        *uplink.Sender
	r        *uplink.Receiver
	frames   []scriptFrame
	dels     []uplink.Deliver
	gaps     []*wire.GapReport
	fail     bool
}

type scriptPart struct {
	info  wire.PartitionInfo
	batch int64
	fork  int64
	salt  string
}

type scriptFrame struct {
	f    uplink.Frame
	lane wire.Lane
}

func epoch(n int) wire.ID { return wire.ID{byte(n)} }

func (w *scriptWorld) inventory() wire.Inventory {
	inv := wire.Inventory{Epochs: []wire.EpochInfo{{ID: epoch(1), Number: 1}}}
	if w.forked {
		e := wire.EpochInfo{ID: epoch(2), Parent: epoch(1), Number: 2}
		for _, n := range w.order {
			e.Forks = append(e.Forks, wire.ForkPoint{Topic: n, Offset: w.parts[n].fork})
		}
		inv.Epochs = append(inv.Epochs, e)
	}
	for _, n := range w.order {
		inv.Partitions = append(inv.Partitions, w.parts[n].info)
	}
	return inv
}

func (p *scriptPart) one(base int64) []byte {
	return linktest.AppendBatch(nil, base, int(p.batch), 0, fmt.Appendf(nil, "%s%08d%s", p.info.Topic, base, p.salt))
}

func (w *scriptWorld) read(j uplink.Job, maxBytes int) uplink.Read {
	p := w.parts[j.Topic]
	if w.fail {
		return uplink.Read{Failed: true}
	}
	if j.From < p.info.Start {
		return uplink.Read{Gone: true}
	}
	if maxBytes == 0 {
		maxBytes = j.MaxBytes
	}
	var b []byte
	for at := j.From - j.From%p.batch; at < p.info.Next; at += p.batch {
		one := p.one(at)
		if len(b) > 0 && len(b)+len(one) > maxBytes {
			break
		}
		b = append(b, one...)
	}
	return uplink.Read{Batches: b}
}

func (w *scriptWorld) command(line string) {
	words := strings.Fields(line)
	arg := map[string]string{}
	for _, x := range words[1:] {
		k, v, _ := strings.Cut(x, "=")
		arg[k] = v
	}
	num := func(k string, def int64) int64 {
		if v, ok := arg[k]; ok {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				panic(line)
			}
			return n
		}
		return def
	}
	lane := func() wire.Lane {
		for l := range wire.Lane(wire.Lanes) {
			if l.String() == arg["lane"] {
				return l
			}
		}
		return wire.LaneLive
	}
	p := w.parts[arg["topic"]]
	switch words[0] {
	case "node":
		p = &scriptPart{batch: num("batch", 10), fork: num("fork", 0)}
		p.info = wire.PartitionInfo{ID: uint32(len(w.parts) + 1), Topic: arg["topic"], Start: num("start", 0), Next: num("next", 0), Mode: wire.Mode(num("mode", 0)), Priority: int32(num("prio", 0))}
		w.forked = w.forked || p.fork > 0
		w.parts[arg["topic"]] = p
		w.order = append(w.order, arg["topic"])
		if w.s != nil {
			w.s.Inventory(w.inventory())
			w.r.Plan(w.inventory(), nil, nil, [wire.Lanes]uint64{})
			w.exchange()
		}
	case "held":
		pr := uplink.Progress{Epoch: epoch(int(num("epoch", 1))), Topic: arg["topic"], Held: parseSet(arg["set"])}
		if _, ok := arg["last"]; ok {
			off := num("last", 0)
			b, _, _ := wire.NextBatch(p.one(off))
			pr.Last = &wire.Held{Offset: off, CRC: b.CRC + uint32(num("crc", 0))}
		}
		w.progress = append(w.progress, pr)
	case "connect":
		credit := [wire.Lanes]int64{1000, 1000, 1000}
		if c := arg["credit"]; c != "" {
			for i, x := range strings.Split(c, ",") {
				credit[i], _ = strconv.ParseInt(x, 10, 64)
			}
		}
		w.r = uplink.NewReceiver(uplink.ReceiverConfig{Node: "n", Credit: credit}, w.inventory())
		w.r.Plan(w.inventory(), w.progress, nil, [wire.Lanes]uint64{wire.LaneBulk: uint64(num("rate", 0))})
		w.s = uplink.NewSender(uplink.SenderConfig{WindowBytes: num("window", 100000), LiveBytes: 200, FrameBytes: 400, MaxWants: 100}, w.inventory(), [wire.Lanes]uint64{uint64(credit[0]), uint64(credit[1]), uint64(credit[2])})
		w.frames, w.dels, w.gaps = nil, nil, nil
		w.exchange()
	case "ask":
		if err := w.r.Ask(arg["topic"], 0, epoch(1), parseSet(arg["set"]), lane(), uint64(num("rate", 0))); err != nil {
			fmt.Fprintln(&w.out, err)
		}
		w.exchange()
	case "next":
		j, ok, wait := w.s.Next(lane(), int(num("conn", 0)), w.now)
		if !ok {
			fmt.Fprintf(&w.out, "nothing, wait %v\n", wait)
			return
		}
		w.job(j)
	case "send":
		j, ok, wait := w.s.Next(lane(), int(num("conn", 0)), w.now)
		if !ok {
			fmt.Fprintf(&w.out, "nothing, wait %v\n", wait)
			return
		}
		w.job(j)
		f, ok := w.s.Done(j, w.read(j, int(num("max", 0))), int(num("conn", 0)), w.now)
		if ok {
			f.Batches = slices.Clone(f.Batches)
			w.frames = append(w.frames, scriptFrame{f, j.Lane})
			fmt.Fprintf(&w.out, "f%d: partition %d epoch %d [%d,%d), %d bytes\n", len(w.frames), f.Header.Partition, f.Header.Epoch, f.Header.Base, f.Header.Base+f.Header.Count, len(f.Batches))
		}
		w.exchange()
	case "wrote":
		if i := num("f", 0); i > 0 && i <= int64(len(w.frames)) {
			w.s.Wrote(w.frames[i-1].f, w.now)
		}
	case "overdue":
		fmt.Fprintf(&w.out, "%d sent again\n", w.s.Overdue(w.now, time.Duration(num("patience", 1000))*time.Millisecond))
	case "recv":
		if num("f", 0) > int64(len(w.frames)) {
			fmt.Fprintln(&w.out, "no such frame")
			return
		}
		x := w.frames[num("f", 0)-1]
		if err := w.r.Admit(x.lane, len(x.f.Batches)); err != nil {
			fmt.Fprintln(&w.out, err)
		}
		if err := wire.VerifyFrame(x.f.Header, x.f.Batches); err != nil {
			fmt.Fprintln(&w.out, err)
		}
		ds, used, err := w.r.Frame(nil, x.lane, x.f.Header, x.f.Batches, nil)
		if err != nil {
			fmt.Fprintln(&w.out, err)
		}
		if !used {
			fmt.Fprintln(&w.out, "dropped")
		} else if len(ds) == 0 {
			fmt.Fprintln(&w.out, "held back")
		}
		w.deliver(ds)
		w.exchange()
	case "store":
		if num("d", 0) > int64(len(w.dels)) {
			fmt.Fprintln(&w.out, "no such delivery")
			return
		}
		d := w.dels[num("d", 0)-1]
		w.r.Durable(&d, ranges.Of(d.Range.From, d.Range.To))
		w.exchange()
	case "declare":
		gaps := w.gaps
		w.gaps = nil
		for _, g := range gaps {
			if _, ok := w.r.Gap(g); !ok {
				fmt.Fprintln(&w.out, "gap refused")
				continue
			}
			var held uplink.RangeSet
			for _, x := range g.Gaps {
				held.AddSet(x.Ranges)
			}
			ds, err := w.r.Declared(nil, g, held)
			if err != nil {
				fmt.Fprintln(&w.out, err)
			}
			w.deliver(ds)
		}
		w.exchange()
	case "append":
		p.info.Next += num("n", 1) * p.batch
		w.s.Advance(arg["topic"], 0, p.info.Start, p.info.Next)
		w.exchange()
	case "evict":
		from := p.info.Start
		p.info.Start = num("to", 0)
		if arg["say"] != "no" {
			w.s.Propose(arg["topic"], 0, epoch(1), wire.Gap{Ranges: ranges.Of(from, p.info.Start), Reason: wire.GapEvicted})
		}
		w.s.Advance(arg["topic"], 0, p.info.Start, p.info.Next)
		w.exchange()
	case "swap":
		p.salt += "x"
	case "fail":
		w.fail = words[1] == "on"
	case "floor":
		var f [wire.Lanes]int32
		for l := range f {
			f[l] = int32(num(wire.Lane(l).String(), int64(uplink.NoFloor)))
		}
		w.s.SetFloor(f)
		fmt.Fprintf(&w.out, "pending live %v, backfill %v, bulk %v\n", w.s.Pending(wire.LaneLive), w.s.Pending(wire.LaneBackfill), w.s.Pending(wire.LaneBulk))
	case "retry":
		w.s.Retry()
	case "cut":
		w.s.Lost(int(num("conn", 0)))
	case "cancel":
		w.s.Cancel(uint32(num("want", 0)))
	case "sleep":
		d, _ := time.ParseDuration(arg["d"])
		w.now = w.now.Add(d)
	case "state":
		fmt.Fprintln(&w.out, "node:", w.s)
		fmt.Fprintln(&w.out, "hub:", w.r)
	default:
		panic("unknown command: " + line)
	}
}

func (w *scriptWorld) job(j uplink.Job) {
	to := strconv.FormatInt(j.To, 10)
	if j.To == uplink.Forever {
		to = "..."
	}
	check := ""
	if j.Check {
		check = " check"
	}
	fmt.Fprintf(&w.out, "read %s [%d,%s) %d bytes%s\n", j.Topic, j.From, to, j.MaxBytes, check)
}

func (w *scriptWorld) deliver(ds []uplink.Deliver) {
	for _, d := range ds {
		w.dels = append(w.dels, d)
		topic := d.Origin.Topic
		if d.Origin.Backfill {
			topic += ".backfill"
		}
		fmt.Fprintf(&w.out, "d%d: %s epoch %d %s by %s\n", len(w.dels), topic, d.Origin.Epoch[0], d.Range, d.Origin.Lane)
	}
}

// exchange carries messages both ways until both are silent.
func (w *scriptWorld) exchange() {
	for {
		for _, a := range w.s.Late() {
			fmt.Fprintf(&w.out, "node: acked %s epoch %d %s\n", a.Topic, a.Epoch[0], a.Ranges)
		}
		down, up := w.r.Messages(), w.s.Messages()
		if len(down)+len(up) == 0 {
			return
		}
		for _, m := range down {
			b, err := wire.Append(nil, m)
			if err != nil {
				fmt.Fprintln(&w.out, "not encodable:", err)
			}
			m, _ = wire.NewReader(bytes.NewReader(b)).Read()
			switch m := m.(type) {
			case *wire.Want:
				follow := ""
				if m.Follow {
					follow = fmt.Sprintf(" follow from %d", m.From)
				}
				if m.Last != nil {
					follow += fmt.Sprintf(" last %d", m.Last.Offset)
				}
				fmt.Fprintf(&w.out, "hub: want %d partition %d epoch %d ranges %s%s on %s, behind on %s\n", m.ID, m.Partition, m.Epoch[0], m.Ranges, follow, m.Lane, m.CatchUp)
				if err := w.s.Want(m); err != nil {
					fmt.Fprintln(&w.out, err)
				}
			case *wire.Ack:
				fmt.Fprintf(&w.out, "hub: ack credit %v\n", m.Credit)
				for _, a := range w.s.Ack(m) {
					fmt.Fprintf(&w.out, "node: acked %s epoch %d %s\n", a.Topic, a.Epoch[0], a.Ranges)
				}
			}
		}
		for _, m := range up {
			switch m := m.(type) {
			case *wire.GapReport:
				w.gaps = append(w.gaps, m)
				for _, g := range m.Gaps {
					fmt.Fprintf(&w.out, "node: gap partition %d epoch %d %s %s\n", m.Partition, m.Epoch[0], g.Ranges, g.Reason)
				}
			case *wire.Fork:
				fmt.Fprintf(&w.out, "node: fork want %d at %d absent %v next %d\n", m.Want, m.Offset, m.Absent, m.Next)
				if o, ok := w.r.Fork(m); ok {
					fmt.Fprintf(&w.out, "hub: forked %s epoch %d\n", o.Topic, o.Epoch[0])
				}
			case *wire.Skip:
				fmt.Fprintf(&w.out, "node: skip want %d [%d,%d)\n", m.Want, m.From, m.To)
				ds, err := w.r.Skip(nil, m)
				if err != nil {
					fmt.Fprintln(&w.out, err)
				}
				w.deliver(ds)
			case *wire.Error:
				fmt.Fprintf(&w.out, "node: error about want %d: %s\n", m.Want, m.Message)
				w.r.Refused(m.Want)
			}
		}
	}
}

func parseSet(s string) uplink.RangeSet {
	var out uplink.RangeSet
	for _, r := range strings.Split(strings.Trim(s, "[)"), ")[") {
		a, b, ok := strings.Cut(r, ",")
		if !ok {
			continue
		}
		from, _ := strconv.ParseInt(a, 10, 64)
		to, _ := strconv.ParseInt(b, 10, 64)
		out.Add(from, to)
	}
	return out
}
