package ledger_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailrace/firmware-sim/ledger"
)

const topic = "site/a/turbine/T1/telemetry"

func payload(boot, seq uint64) []byte {
	return fmt.Appendf(nil, `{"boot":"%08x","seq":%d,"signals":{"x":%d}}`, boot, seq, seq*7)
}

type record struct {
	boot, seq uint64
	body      []byte
}

// honest returns a book of two boots of one stream with 40 acked, 1 refused and
// 2 unknown records, and what an honest system shows for it.
func honest() (*ledger.Book, []record) {
	b := ledger.New()
	var log []record
	for boot := uint64(1); boot <= 2; boot++ {
		s := b.Session(topic, boot)
		for seq := uint64(1); seq <= 20; seq++ {
			p := payload(boot, seq)
			s.Intent(seq, ledger.Hash(p))
			s.Ack(seq, 1)
			log = append(log, record{boot, seq, p})
		}
	}
	s := b.Session(topic, 2)
	for seq := uint64(21); seq <= 23; seq++ {
		s.Intent(seq, ledger.Hash(payload(2, seq)))
	}
	s.Unknown(21, 2)
	s.Refused(23, 1)
	log = append(log, record{2, 21, payload(2, 21)}) // one unknown arrived, one did not
	return b, log
}

func observe(b *ledger.Book, log []record) ledger.Report {
	o := b.Observe("test")
	for i, r := range log {
		o.SeePayload(topic, r.body, ledger.Position{Offset: int64(i)})
	}
	return o.Report()
}

func TestAnHonestSystemPasses(t *testing.T) {
	b, log := honest()
	r := observe(b, log)
	if !r.OK() || r.Delivered != 41 || r.Published != 43 || r.Acked != 40 || r.Unknown != 2 || r.Refused != 1 {
		t.Fatal(r)
	}
}

func TestEachPlantedFaultIsFound(t *testing.T) {
	cut := func(l []record, i int) []record { return append(l[:i:i], l[i+1:]...) }
	add := func(l []record, i int, r ...record) []record {
		return append(append(l[:i:i], r...), l[i:]...)
	}
	for _, c := range []struct {
		name  string
		plant func(l []record) []record
		want  string
	}{
		{"lost", func(l []record) []record { return cut(l, 7) }, "lost=1"},
		{"lost last", func(l []record) []record { return cut(l, 39) }, "lost=1"},
		{"duplicate at once", func(l []record) []record { return add(l, 8, l[7]) }, "duplicate=1"},
		{"duplicate much later", func(l []record) []record { return append(l, l[3]) }, "duplicate=1"},
		{"swapped", func(l []record) []record { l[4], l[5] = l[5], l[4]; return l }, "out_of_order=1"},
		{"old boot after new", func(l []record) []record { return add(cut(l, 19), 30, l[19]) }, "boot_out_of_order=1"},
		{"altered", func(l []record) []record {
			l[9].body = []byte(strings.Replace(string(l[9].body), "70", "71", 1))
			return l
		}, "altered=1"},
		{"invented sequence", func(l []record) []record { return append(l, record{2, 99, payload(2, 99)}) }, "invented=1"},
		{"invented boot", func(l []record) []record { return append(l, record{9, 1, payload(9, 1)}) }, "invented=1"},
		{"rubbish", func(l []record) []record { return append(l, record{body: []byte("\x00\xff rubbish")}) }, "invented=1"},
		{"refused and stored", func(l []record) []record { return append(l, record{2, 23, payload(2, 23)}) }, "refused_seen=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, log := honest()
			r := observe(b, c.plant(log))
			if got := strings.Join(r.Faults(), " "); got != c.want {
				t.Fatalf("faults %q, want %q\n%v", got, c.want, r)
			}
			if len(r.Examples) == 0 {
				t.Error("no example given")
			}
		})
	}
}

func TestOffsetsStayWhatTheyWere(t *testing.T) {
	b, log := honest()
	o, o2 := b.Observe("first"), b.Observe("second")
	see := func(o *ledger.Observer, i, at int) {
		o.SeePayload(topic, log[i].body, ledger.Position{Offset: int64(at)})
	}
	for i := range log {
		see(o, i, i)
	}
	for i := range log[:5] {
		see(o, i, i) // reading again is no duplicate
	}
	if r := o.Report(); !r.OK() || r.Reread != 5 {
		t.Fatal(r)
	}
	see(o, 3, 4)
	if r := o.Report(); r.Moved != 1 {
		t.Fatal(r)
	}
	for i := range log[:10] {
		j := i
		if i == 6 {
			j = 7
		}
		see(o2, j, i)
	}
	if shared, differ := o.SameAs(o2); shared != 10 || differ != 1 {
		t.Fatalf("shared %d differ %d", shared, differ)
	}
	o3 := b.Observe("holes")
	see(o3, 0, 0)
	see(o3, 1, 9)
	if r := o3.Report(); r.OffsetHoles != 8 {
		t.Fatal(r)
	}
}

func TestDeclaredLossIsNotLostAndMustNotBeSeen(t *testing.T) {
	b, log := honest()
	o := b.Observe("test")
	for i, r := range log {
		if i != 10 && i != 11 {
			o.SeePayload(topic, r.body, ledger.NoPosition)
		}
	}
	if r := o.Report(); r.Lost != 2 {
		t.Fatal(r)
	}
	o.Declare(topic, 1, 11, 13)
	if r := o.Report(); !r.OK() || r.Declared != 2 {
		t.Fatal(r)
	}
	o.Declare(topic, 1, 1, 2)
	if r := o.Report(); r.DeclaredSeen != 1 {
		t.Fatal(r)
	}
}

// After a server forgot a session a device sends again as new: that double is
// its own. A re-send with DUP on a persistent session must not double.
func TestOnlyAFreshResendMayDouble(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		b := ledger.New()
		s := b.Session(topic, 1)
		p := payload(1, 1)
		s.Intent(1, ledger.Hash(p))
		s.Resent(1, 1, fresh)
		s.Ack(1, 1)
		o := b.Observe("test")
		o.SeePayload(topic, p, ledger.NoPosition)
		o.SeePayload(topic, p, ledger.NoPosition)
		if r := o.Report(); r.OK() != fresh {
			t.Fatalf("fresh %v: %v", fresh, r)
		}
		o.SeePayload(topic, p, ledger.NoPosition)
		if r := o.Report(); r.Duplicate == 0 {
			t.Fatalf("fresh %v: a third copy passed", fresh)
		}
	}
}

func TestASenderThatContradictsItselfFailsTheCheck(t *testing.T) {
	for name, f := range map[string]func(s *ledger.Session){
		"ack before intent":      func(s *ledger.Session) { s.Ack(5, 1) },
		"two payloads, one seq":  func(s *ledger.Session) { s.Intent(1, 1); s.Intent(1, 2) },
		"sequence zero":          func(s *ledger.Session) { s.Intent(0, 1) },
		"ack of a skipped one":   func(s *ledger.Session) { s.Intent(1, 1); s.Intent(3, 1); s.Ack(2, 1) },
		"sequence out of bounds": func(s *ledger.Session) { s.Intent(1<<40, 1) },
	} {
		b := ledger.New()
		f(b.Session(topic, 1))
		if r := b.Observe("x").Report(); r.OK() {
			t.Errorf("%s passed: %v", name, r)
		}
	}
	var none *ledger.Book // no ledger kept: all calls are harmless
	s := none.Session(topic, 1)
	s.Intent(1, 2)
	s.Ack(1, 1)
	s.Unknown(1, 1)
}

// Cut at every byte, the file loads to a prefix: every intent whose entry is
// whole is there, nothing is invented.
func TestAFileCutAnywhereLoadsAsAPrefix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run.ledger")
	b, err := ledger.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b.Note("seed 7")
	rng := rand.New(rand.NewPCG(7, 7))
	s := b.Session(topic, 1)
	for seq := uint64(1); seq <= 60; {
		n := 1 + rng.Uint64N(5)
		var hs []uint32
		for i := range n {
			hs = append(hs, ledger.Hash(payload(1, seq+i)))
		}
		s.Intent(seq, hs...)
		s.Ack(seq, int(n)-1)
		seq += n
	}
	want := b.Totals()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	whole, _ := os.ReadFile(path)
	last := ledger.Totals{}
	for n := 8; n <= len(whole); n++ {
		cut := filepath.Join(dir, "cut")
		if err := os.WriteFile(cut, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := ledger.Load(cut)
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		tot := got.Totals()
		if tot.Published < last.Published || tot.Acked < last.Acked || got.Err() != nil {
			t.Fatalf("cut at %d: %+v after %+v, %v", n, tot, last, got.Err())
		}
		last = tot
	}
	if last != want {
		t.Fatalf("loaded %+v, wrote %+v", last, want)
	}
	whole[len(whole)/2] ^= 1
	bad := filepath.Join(dir, "bad")
	os.WriteFile(bad, whole, 0o644)
	if _, err := ledger.Load(bad); !errors.Is(err, ledger.ErrDamaged) {
		t.Fatalf("damaged file: %v", err)
	}
	if _, err := ledger.Create(path); err == nil {
		t.Fatal("an existing ledger was overwritten")
	}
}

func TestIntentIsInTheFileBeforeTheSend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run.ledger")
	b, err := ledger.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b.Session(topic, 1).Intent(1, 42)
	got, err := ledger.Load(path) // the writer has neither flushed nor closed
	if err != nil || got.Totals().Published != 1 {
		t.Fatalf("%+v %v", got.Totals(), err)
	}
}

func TestIdentifyRefusesWhatIsNotAnIdentity(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"boot":"0a","seq":3}`: true, `{"boot":"0a","seq":    12,"x":1}`: true,
		``: false, `{"boot":"zz","seq":3}`: false, `{"boot":"0a","seq":0}`: false, `{"boot":"0a"}`: false,
		`{"boot":"0a","seq":99999999999999999999999}`: false, "\xa1": false, "\xbf\xff": false,
		`{"boot":"00112233445566778899aabb","seq":1}`: false,
	} {
		if _, _, err := ledger.Identify([]byte(in)); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
	if _, _, err := ledger.Identify([]byte(`{"site":"a","will":true}`)); !errors.Is(err, ledger.ErrWill) {
		t.Error(err)
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte(`{"boot":"0a","seq":3}`))
	f.Add([]byte("\xa2dbootb0acseq\x01"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, seq, err := ledger.Identify(p); err == nil && seq == 0 {
			t.Fatal("sequence 0 accepted")
		}
	})
}
