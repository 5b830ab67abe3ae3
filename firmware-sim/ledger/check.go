package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"sort"
	"strings"
)

// maxExamples is how many faults of each kind a report spells out.
const maxExamples = 5

// Position is where an observer found a record. The zero Partition is fine for
// observers with one; NoPosition switches the checks of offsets off.
type Position struct {
	Partition int64
	Offset    int64
}

// NoPosition is for observers without offsets, such as an MQTT subscriber.
var NoPosition = Position{Offset: -1}

// Observer is one reading of the system under test: See is called for every
// record in the order the observer got them. Not safe for concurrent use.
type Observer struct {
	Name string

	book       *Book
	sessions   map[*Session]*seen
	streams    map[string]*place
	partitions map[int64]*positions
	examples   map[string]int
	rep        Report
}

type seen struct {
	once     bitmap
	declared bitmap
	doubles  map[uint64]uint32
}

type place struct {
	stream  *stream
	session int // index of the newest boot seen
	seq     uint64
}

type positions struct {
	first, next int64
	hash        []uint32 // content by offset, from first
}

// Report is the outcome of a check. All counts but Delivered, Declared, Wills,
// Reread, DoubledAllowed and the account's own must be zero.
type Report struct {
	Observer string `json:"observer"`
	Totals
	Delivered  uint64 `json:"delivered"` // distinct records seen
	Lost       uint64 `json:"lost"`      // acked, not seen, not declared
	Duplicate  uint64 `json:"duplicate"`
	OutOfOrder uint64 `json:"out_of_order"` // first appearance below an earlier one of its stream and boot

	BootDisorder   uint64 `json:"boot_out_of_order"` // a record of an older boot after one of a newer boot
	Invented       uint64 `json:"invented"`          // seen, but no device says it sent it
	Altered        uint64 `json:"altered"`           // seen with another content
	RefusedSeen    uint64 `json:"refused_seen"`      // the device was told no, and it arrived
	Declared       uint64 `json:"declared"`          // declared lost by the system
	DeclaredSeen   uint64 `json:"declared_seen"`     // declared lost, and seen
	Moved          uint64 `json:"moved"`             // an offset showed two different contents
	OffsetHoles    uint64 `json:"offset_holes"`
	Wills          uint64 `json:"wills"`
	Reread         uint64 `json:"reread"`          // the same offset with the same content again
	DoubledAllowed uint64 `json:"doubled_allowed"` // doubles of records sent as new after the server forgot the session
	Account        string `json:"account,omitempty"`

	Examples []string `json:"examples,omitempty"`
}

// Observe starts an observation against the book. The book may still grow, but
// the report is only final once all senders have stopped.
func (b *Book) Observe(name string) *Observer {
	return &Observer{Name: name, book: b, sessions: map[*Session]*seen{}, streams: map[string]*place{},
		partitions: map[int64]*positions{}, examples: map[string]int{}, rep: Report{Observer: name}}
}

// SeePayload notes a record by its topic and payload. A payload without identity
// is invented, unless it is a last will.
func (o *Observer) SeePayload(topic string, payload []byte, pos Position) {
	boot, seq, err := Identify(payload)
	switch {
	case errors.Is(err, ErrWill):
		if o.position(pos, Hash(payload)) {
			o.rep.Wills++
		}
	case err != nil:
		if o.position(pos, Hash(payload)) {
			o.invented("%s at %d/%d: %v: %.60q", topic, pos.Partition, pos.Offset, err, payload)
		}
	default:
		o.See(topic, boot, seq, Hash(payload), pos)
	}
}

// See notes one record.
func (o *Observer) See(streamName string, boot, seq uint64, hash uint32, pos Position) {
	if !o.position(pos, hash) {
		return
	}
	p := o.streams[streamName]
	if p == nil {
		o.book.mu.Lock()
		st := o.book.streams[streamName]
		o.book.mu.Unlock()
		if st == nil {
			o.invented("stream %s: no device sends to it", streamName)
			return
		}
		p = &place{stream: st, session: -1}
		o.streams[streamName] = p
	}
	o.book.mu.Lock()
	s := p.stream.byBoot[boot]
	o.book.mu.Unlock()
	if s == nil {
		o.invented("%s boot %x seq %d: no such boot", streamName, boot, seq)
		return
	}
	s.mu.Lock()
	sent, again := s.sent.has(seq), s.fresh[seq]
	var want uint32
	if sent {
		want = s.hash[seq]
	}
	s.mu.Unlock()
	if !sent {
		o.invented("%s boot %x seq %d: never sent", streamName, boot, seq)
		return
	}
	if want != hash {
		o.rep.Altered++
		o.example("altered: %s boot %x seq %d at %d/%d", streamName, boot, seq, pos.Partition, pos.Offset)
	}
	k := o.of(s)
	if k.once.has(seq) {
		if k.doubles == nil {
			k.doubles = map[uint64]uint32{}
		}
		k.doubles[seq]++
		if k.doubles[seq] <= again {
			o.rep.DoubledAllowed++
			return
		}
		o.rep.Duplicate++
		o.example("duplicate: %s boot %x seq %d again at %d/%d", streamName, boot, seq, pos.Partition, pos.Offset)
		return
	}
	k.once.set(seq)
	o.rep.Delivered++
	switch {
	case s.index > p.session:
		p.session, p.seq = s.index, seq
	case s.index < p.session:
		o.rep.BootDisorder++
		o.example("old boot: %s boot %x seq %d after a newer boot", streamName, boot, seq)
	case seq < p.seq:
		o.rep.OutOfOrder++
		o.example("out of order: %s boot %x seq %d after %d", streamName, boot, seq, p.seq)
	default:
		p.seq = seq
	}
}

// Declare notes that the system itself reports the records [from, to) as lost.
func (o *Observer) Declare(streamName string, boot, from, to uint64) {
	o.book.mu.Lock()
	var s *Session
	if st := o.book.streams[streamName]; st != nil {
		s = st.byBoot[boot]
	}
	o.book.mu.Unlock()
	if s == nil || to > from+maxJump {
		o.invented("declared gap in unknown %s boot %x", streamName, boot)
		return
	}
	k := o.of(s)
	for seq := from; seq < to; seq++ {
		k.declared.set(seq)
	}
}

func (o *Observer) of(s *Session) *seen {
	k := o.sessions[s]
	if k == nil {
		k = &seen{}
		o.sessions[s] = k
	}
	return k
}

// position keeps the content of each offset and reports whether the record is
// new at it. Offsets rise by one without holes on the first reading; a second
// reading of the same offsets must show the same contents.
func (o *Observer) position(pos Position, hash uint32) bool {
	if pos.Offset < 0 {
		return true
	}
	p := o.partitions[pos.Partition]
	if p == nil {
		p = &positions{first: pos.Offset, next: pos.Offset}
		o.partitions[pos.Partition] = p
	}
	switch i := pos.Offset - p.first; {
	case pos.Offset == p.next:
		p.hash = append(p.hash, hash)
		p.next++
		return true
	case pos.Offset > p.next:
		gap := pos.Offset - p.next
		o.rep.OffsetHoles += uint64(gap)
		o.example("offset hole: partition %d, %d after %d", pos.Partition, pos.Offset, p.next-1)
		// Restart behind the hole: what was before is no longer compared.
		p.first, p.next, p.hash = pos.Offset, pos.Offset+1, append(p.hash[:0], hash)
		return true
	case i >= 0 && p.hash[i] == hash:
		o.rep.Reread++
		return false
	default:
		o.rep.Moved++
		o.example("moved: partition %d offset %d shows another content than before", pos.Partition, pos.Offset)
		return i < 0
	}
}

// Report compares what was seen with the book. It may be called repeatedly, at
// every crash point: what is acked by then must be seen by then.
func (o *Observer) Report() Report {
	r := o.rep
	r.Examples = append([]string(nil), o.rep.Examples...)
	r.Totals = o.book.Totals()
	if err := o.book.Err(); err != nil {
		r.Account = err.Error()
	}
	for _, st := range o.book.snapshot() {
		for _, s := range st {
			k := o.sessions[s]
			if k == nil {
				k = &seen{}
			}
			s.mu.Lock()
			for w := range s.sent {
				acked, refused := s.acked.word(w), s.refused.word(w)
				once, declared := k.once.word(w), k.declared.word(w)
				lost := acked &^ (once | declared)
				r.Lost += uint64(bits.OnesCount64(lost))
				r.RefusedSeen += uint64(bits.OnesCount64(refused &^ acked & once))
				r.Declared += uint64(bits.OnesCount64(declared))
				r.DeclaredSeen += uint64(bits.OnesCount64(declared & once))
				spell := func(kind string, set uint64) {
					for ; set != 0 && len(r.Examples) < 8*maxExamples; set &= set - 1 {
						r.Examples = append(r.Examples, fmt.Sprintf("%s: %s boot %x seq %d", kind, s.stream.name, s.boot, w*64+bits.TrailingZeros64(set)))
					}
				}
				spell("lost", lost)
				spell("refused and seen", refused&^acked&once)
				spell("declared lost and seen", declared&once)
			}
			s.mu.Unlock()
		}
	}
	return r
}

// Faults lists the counts that must be zero and are not.
func (r Report) Faults() []string {
	var out []string
	for name, n := range map[string]uint64{
		"lost": r.Lost, "duplicate": r.Duplicate, "out_of_order": r.OutOfOrder, "boot_out_of_order": r.BootDisorder,
		"invented": r.Invented, "altered": r.Altered, "refused_seen": r.RefusedSeen, "declared_seen": r.DeclaredSeen,
		"moved": r.Moved, "offset_holes": r.OffsetHoles,
	} {
		if n > 0 {
			out = append(out, fmt.Sprintf("%s=%d", name, n))
		}
	}
	sort.Strings(out)
	if r.Account != "" {
		out = append(out, "the account contradicts itself: "+r.Account)
	}
	return out
}

// OK reports whether nothing is missing, doubled, out of order, invented or altered.
func (r Report) OK() bool { return len(r.Faults()) == 0 }

// String is the report as one line of JSON, with the examples on lines below.
func (r Report) String() string {
	examples := r.Examples
	r.Examples = nil
	line, _ := json.Marshal(r) // plain numbers and strings: cannot fail
	return strings.Join(append([]string{string(line)}, examples...), "\n  ")
}

// SameAs compares the contents by position of two readings where both have
// read, and returns how many offsets they share and how many differ.
func (o *Observer) SameAs(other *Observer) (shared, differ int64) {
	for n, p := range o.partitions {
		q := other.partitions[n]
		if q == nil {
			continue
		}
		for off := max(p.first, q.first); off < min(p.next, q.next); off++ {
			shared++
			if p.hash[off-p.first] != q.hash[off-q.first] {
				differ++
			}
		}
	}
	return shared, differ
}

func (o *Observer) invented(format string, args ...any) {
	o.rep.Invented++
	o.example("invented: "+format, args...)
}

// example keeps the first few of each kind; the format begins with the kind.
func (o *Observer) example(format string, args ...any) {
	kind, _, _ := strings.Cut(format, ":")
	if o.examples[kind]++; o.examples[kind] <= maxExamples {
		o.rep.Examples = append(o.rep.Examples, fmt.Sprintf(format, args...))
	}
}
