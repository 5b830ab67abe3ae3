// Package ledger is the independent witness of a test run. The devices write
// down what they are about to send, what was acknowledged, refused or left
// unknown; afterwards a Checker compares that with what an observer (a log, a
// Kafka consumer, a replay) saw. It stands outside the system under test: it
// shares no code with it, and it neither sleeps, retries nor removes doubles.
//
// A record is named by its stream (the MQTT topic: every simulated device has
// topics of its own), the boot of the device that sent it, and its sequence
// number within stream and boot, which starts at 1. The rules on the sender:
//
//   - Intent before the first byte is written to the socket;
//   - Ack only for a success acknowledgement read from the socket, Refused for a
//     negative one; everything else stays unknown for ever, and may or may not
//     have arrived;
//   - Resent before a record goes out again.
//
// A Book lives in memory, about 5 bytes a record, and optionally in a file
// (Create) that another process loads (Load) after the writer was killed.
package ledger

import (
	"fmt"
	"hash/crc32"
	"math/bits"
	"sync"
	"time"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Hash is the content hash the ledger keeps of a payload (CRC-32C).
func Hash(payload []byte) uint32 { return crc32.Checksum(payload, castagnoli) }

// maxJump bounds how far one entry may move a sequence, so that a damaged file
// cannot make Load allocate without bound.
const maxJump = 1 << 22

// Book holds the intents and outcomes of one run. Safe for concurrent use.
type Book struct {
	mu      sync.Mutex
	streams map[string]*stream // guarded by mu
	order   []*stream          // by first Session call; guarded by mu
	notes   []string           // guarded by mu
	err     error              // first contradiction in the sender's own account; guarded by mu
	nextID  uint64             // guarded by mu
	sink    *sink              // nil: memory only
	started time.Time
}

type stream struct {
	name     string
	sessions []*Session // in order of boot
	byBoot   map[uint64]*Session
}

// Session is the account of one boot of one stream. A nil *Session ignores all
// calls, so that senders need not ask whether a ledger is kept.
type Session struct {
	book   *Book
	id     uint64
	stream *stream
	boot   uint64
	index  int // position among the stream's sessions

	mu      sync.Mutex
	sent    bitmap // all below guarded by mu
	acked   bitmap
	refused bitmap
	hash    []uint32
	top     uint64            // highest sequence with an intent
	fresh   map[uint64]uint32 // sequence → how often it was sent again as a *new* publish (allowed to double)
	resent  uint64            // sends with DUP
}

// New returns a book in memory.
func New() *Book {
	return &Book{streams: map[string]*stream{}, started: time.Now()}
}

// Note adds a line for people: seed, fault list, versions.
func (b *Book) Note(text string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.notes = append(b.notes, text)
	b.mu.Unlock()
	b.sink.note(text)
}

// Notes returns the lines written so far.
func (b *Book) Notes() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.notes...)
}

// Session declares that a device (re)started on a stream. Calling it again with
// the same boot returns the same account.
func (b *Book) Session(streamName string, boot uint64) *Session {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.streams[streamName]
	if st == nil {
		st = &stream{name: streamName, byBoot: map[uint64]*Session{}}
		b.streams[streamName] = st
		b.order = append(b.order, st)
	}
	if s := st.byBoot[boot]; s != nil {
		return s
	}
	s := &Session{book: b, id: b.nextID, stream: st, boot: boot, index: len(st.sessions)}
	b.nextID++
	st.sessions = append(st.sessions, s)
	st.byBoot[boot] = s
	b.sink.session(s.id, streamName, boot)
	return s
}

// Intent notes that the records from, from+1, … with these content hashes are
// about to be sent. With a file, the entry is with the kernel when it returns,
// so it outlives a SIGKILL of the sender.
func (s *Session) Intent(from uint64, hashes ...uint32) {
	if s == nil || len(hashes) == 0 {
		return
	}
	s.mu.Lock()
	err := s.intent(from, hashes)
	s.mu.Unlock()
	if err != nil {
		s.book.fail(err)
	}
	s.book.sink.intent(s.id, from, hashes)
}

func (s *Session) intent(from uint64, hashes []uint32) error {
	end := from + uint64(len(hashes)) // exclusive
	if from == 0 || end < from || end > s.top+maxJump {
		return fmt.Errorf("stream %s boot %x: intent for sequence %d after %d", s.stream.name, s.boot, from, s.top)
	}
	for uint64(len(s.hash)) < end {
		s.hash = append(s.hash, 0)
	}
	var err error
	for i, h := range hashes {
		seq := from + uint64(i)
		if s.sent.has(seq) && s.hash[seq] != h {
			err = fmt.Errorf("stream %s boot %x: sequence %d was given to two different payloads", s.stream.name, s.boot, seq)
			continue
		}
		s.sent.set(seq)
		s.hash[seq] = h
	}
	s.top = max(s.top, end-1)
	return err
}

// Ack notes that n records from sequence from on were acknowledged with success.
func (s *Session) Ack(from uint64, n int) { s.mark(kindAck, from, n) }

// Refused notes a negative acknowledgement: the record must not arrive.
func (s *Session) Refused(from uint64, n int) { s.mark(kindRefused, from, n) }

// Unknown notes that the connection went away before the answer. It changes
// nothing in the check (no outcome means unknown); it is for people who read the file.
func (s *Session) Unknown(from uint64, n int) {
	if s != nil && n > 0 {
		s.book.sink.span(kindUnknown, s.id, from, n)
	}
}

// Resent notes that n records go out again: with DUP on a persistent session,
// where a double at the far end is a fault; or, with fresh, as new publishes
// because the server forgot the session, where each may arrive once more.
func (s *Session) Resent(from uint64, n int, fresh bool) {
	if fresh {
		s.mark(kindFresh, from, n)
	} else {
		s.mark(kindDup, from, n)
	}
}

func (s *Session) mark(kind byte, from uint64, n int) {
	if s == nil || n <= 0 {
		return
	}
	s.mu.Lock()
	err := s.apply(kind, from, n)
	s.mu.Unlock()
	if err != nil {
		s.book.fail(err)
	}
	s.book.sink.span(kind, s.id, from, n)
}

func (s *Session) apply(kind byte, from uint64, n int) error {
	if from == 0 || uint64(n) > s.top || from+uint64(n)-1 > s.top {
		return fmt.Errorf("stream %s boot %x: outcome for sequences %d+%d, sent only to %d", s.stream.name, s.boot, from, n, s.top)
	}
	for seq := from; seq < from+uint64(n); seq++ {
		if !s.sent.has(seq) {
			return fmt.Errorf("stream %s boot %x: outcome for sequence %d, which was never sent", s.stream.name, s.boot, seq)
		}
		switch kind {
		case kindAck:
			s.acked.set(seq)
		case kindRefused:
			s.refused.set(seq)
		case kindFresh:
			if s.fresh == nil {
				s.fresh = map[uint64]uint32{}
			}
			s.fresh[seq]++
		case kindDup:
			s.resent++
		}
	}
	return nil
}

// Last is the newest acknowledged record of a stream; zeros when there is none.
func (b *Book) Last(streamName string) (boot, seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := b.streams[streamName]
	if st == nil {
		return 0, 0
	}
	for _, s := range st.sessions {
		s.mu.Lock()
		for i := uint64(len(s.acked) * 64); i > 0; i-- {
			if s.acked.has(i - 1) {
				boot, seq = s.boot, i-1
				break
			}
		}
		s.mu.Unlock()
	}
	return boot, seq
}

// fail keeps the first contradiction; a Checker reports it, because a broken
// account proves nothing.
func (b *Book) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
}

// Err is the first contradiction in the account or the first error of the file.
func (b *Book) Err() error {
	b.mu.Lock()
	err := b.err
	b.mu.Unlock()
	if err == nil {
		err = b.sink.lastErr()
	}
	return err
}

// Totals counts the account.
type Totals struct {
	Streams   int    `json:"streams"`
	Sessions  int    `json:"sessions"`
	Published uint64 `json:"published"` // distinct records with an intent
	Acked     uint64 `json:"acked"`
	Refused   uint64 `json:"refused"`
	Unknown   uint64 `json:"unknown"`
	Resent    uint64 `json:"resent"` // sends with DUP
}

// Totals sums over all sessions.
func (b *Book) Totals() Totals {
	var t Totals
	for _, st := range b.snapshot() {
		t.Streams++
		for _, s := range st {
			s.mu.Lock()
			sent, acked, refused := s.sent.count(), s.acked.count(), s.refused.count()
			t.Resent += s.resent
			s.mu.Unlock()
			t.Sessions++
			t.Published += sent
			t.Acked += acked
			t.Refused += refused
			t.Unknown += sent - min(sent, acked+refused)
		}
	}
	return t
}

func (b *Book) snapshot() [][]*Session {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([][]*Session, len(b.order))
	for i, st := range b.order {
		out[i] = append([]*Session(nil), st.sessions...)
	}
	return out
}

// bitmap is indexed by sequence.
type bitmap []uint64

func (m bitmap) has(i uint64) bool {
	return i/64 < uint64(len(m)) && m[i/64]&(1<<(i%64)) != 0
}

func (m *bitmap) set(i uint64) {
	for uint64(len(*m)) <= i/64 {
		*m = append(*m, 0)
	}
	(*m)[i/64] |= 1 << (i % 64)
}

func (m bitmap) count() (n uint64) {
	for _, w := range m {
		n += uint64(bits.OnesCount64(w))
	}
	return n
}

func (m bitmap) word(i int) uint64 {
	if i < len(m) {
		return m[i]
	}
	return 0
}
