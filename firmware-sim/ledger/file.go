package ledger

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"
)

// The file form. It is written with plain appends and never synced: it must
// survive the death of a process, not of the machine.
//
//	file  = "TRLEDGR1" entry*
//	entry = u32 length of body | u32 CRC-32C of body | body        (big endian)
//	body  = kind u8 | uvarint microseconds since the file began | fields
//
//	session  uvarint id, uvarint boot, stream name
//	intent   uvarint id, uvarint from, u32 hash * n
//	others   uvarint id, uvarint from, uvarint n
//	note     text
//
// An incomplete last entry is what a SIGKILL leaves; it is ignored. An intent is
// handed to the kernel before Intent returns; outcomes follow with the next
// intent or Flush, so a killed sender may forget an ack (the record then counts
// as unknown) but never an intent.
const fileMagic = "TRLEDGR1"

const (
	kindSession byte = 1 + iota
	kindIntent
	kindAck
	kindRefused
	kindUnknown
	kindDup
	kindFresh
	kindNote
)

const (
	maxEntryBytes = 1 << 22
	flushBytes    = 64 << 10
)

// ErrDamaged is returned by Load for a file that is damaged before its tail.
var ErrDamaged = errors.New("ledger file is damaged")

// Create returns a book that also writes the file at path, which must not exist.
func Create(path string) (*Book, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create ledger: %w", err)
	}
	b := New()
	b.sink = &sink{f: f, started: b.started, buf: append(make([]byte, 0, flushBytes), fileMagic...)}
	return b, nil
}

// Flush hands everything noted so far to the kernel.
func (b *Book) Flush() error {
	if b == nil {
		return nil
	}
	return b.sink.flush()
}

// Close flushes and closes the file, if any.
func (b *Book) Close() error {
	if b == nil || b.sink == nil {
		return nil
	}
	err := b.sink.flush()
	return errors.Join(err, b.sink.f.Close())
}

// sink writes entries. All methods accept a nil receiver and keep the first error.
type sink struct {
	mu      sync.Mutex
	f       *os.File
	buf     []byte // guarded by mu
	err     error  // guarded by mu
	started time.Time
}

func (k *sink) lastErr() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

func (k *sink) flush() error {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flushLocked()
	return k.err
}

func (k *sink) flushLocked() {
	if len(k.buf) > 0 && k.err == nil {
		if _, err := k.f.Write(k.buf); err != nil {
			k.err = fmt.Errorf("write ledger: %w", err)
		}
	}
	k.buf = k.buf[:0]
}

// open starts an entry and returns its position; done completes it.
func (k *sink) open(kind byte) int {
	at := len(k.buf)
	k.buf = append(k.buf, 0, 0, 0, 0, 0, 0, 0, 0, kind)
	k.buf = binary.AppendUvarint(k.buf, uint64(time.Since(k.started).Microseconds()))
	return at
}

func (k *sink) done(at int) {
	body := k.buf[at+8:]
	binary.BigEndian.PutUint32(k.buf[at:], uint32(len(body)))
	binary.BigEndian.PutUint32(k.buf[at+4:], crc32.Checksum(body, castagnoli))
	if len(k.buf) >= flushBytes {
		k.flushLocked()
	}
}

func (k *sink) session(id uint64, stream string, boot uint64) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := k.open(kindSession)
	k.buf = binary.AppendUvarint(k.buf, id)
	k.buf = binary.AppendUvarint(k.buf, boot)
	k.buf = append(k.buf, stream...)
	k.done(at)
}

func (k *sink) intent(id, from uint64, hashes []uint32) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := k.open(kindIntent)
	k.buf = binary.AppendUvarint(k.buf, id)
	k.buf = binary.AppendUvarint(k.buf, from)
	for _, h := range hashes {
		k.buf = binary.BigEndian.AppendUint32(k.buf, h)
	}
	k.done(at)
	k.flushLocked()
}

func (k *sink) span(kind byte, id, from uint64, n int) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := k.open(kind)
	k.buf = binary.AppendUvarint(k.buf, id)
	k.buf = binary.AppendUvarint(k.buf, from)
	k.buf = binary.AppendUvarint(k.buf, uint64(n))
	k.done(at)
}

func (k *sink) note(text string) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := k.open(kindNote)
	k.buf = append(k.buf, text...)
	k.done(at)
	k.flushLocked()
}

// Load reads the files of one run (several senders may each have written one)
// into a book. Sessions of the same stream in several files keep file order.
func Load(paths ...string) (*Book, error) {
	b := New()
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			return nil, fmt.Errorf("load ledger: %w", err)
		}
		err = b.read(bufio.NewReaderSize(f, 1<<20))
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("load ledger %s: %w", p, err)
		}
	}
	return b, nil
}

func (b *Book) read(r io.Reader) error {
	magic := make([]byte, len(fileMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != fileMagic {
		return fmt.Errorf("%w: it does not begin with %q", ErrDamaged, fileMagic)
	}
	sessions := map[uint64]*Session{} // ids are per file
	var head [8]byte
	var body []byte
	for n := int64(len(magic)); ; {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return tail(err)
		}
		size := binary.BigEndian.Uint32(head[:])
		if size == 0 || size > maxEntryBytes {
			return fmt.Errorf("%w: entry of %d bytes at %d", ErrDamaged, size, n)
		}
		if uint32(cap(body)) < size {
			body = make([]byte, size)
		}
		body = body[:size]
		if _, err := io.ReadFull(r, body); err != nil {
			return tail(err)
		}
		if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
			return fmt.Errorf("%w: checksum of the entry at %d", ErrDamaged, n)
		}
		if err := b.replay(sessions, body); err != nil {
			return fmt.Errorf("%w: entry at %d: %v", ErrDamaged, n, err)
		}
		n += int64(len(head)) + int64(size)
	}
}

// tail accepts the end of the file, also in the middle of an entry.
func tail(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func (b *Book) replay(sessions map[uint64]*Session, body []byte) error {
	kind, rest := body[0], body[1:]
	bad := false
	next := func() uint64 {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			bad = true
			return 0
		}
		rest = rest[n:]
		return v
	}
	next() // time
	if kind == kindNote {
		b.Note(string(rest))
		return nil
	}
	id, second := next(), next()
	if bad {
		return errors.New("too short")
	}
	if kind == kindSession {
		sessions[id] = b.Session(string(rest), second)
		return nil
	}
	s := sessions[id]
	if s == nil {
		return fmt.Errorf("session %d was never opened", id)
	}
	switch kind {
	case kindIntent:
		hashes := make([]uint32, len(rest)/4)
		for i := range hashes {
			hashes[i] = binary.BigEndian.Uint32(rest[4*i:])
		}
		if err := s.intent(second, hashes); err != nil {
			b.fail(err)
		}
	case kindAck, kindRefused, kindDup, kindFresh:
		n := next()
		if bad || n == 0 || n > maxJump {
			return errors.New("bad length of a span")
		}
		if err := s.apply(kind, second, int(n)); err != nil {
			b.fail(err)
		}
	}
	return nil // kinds of a later version are skipped
}
