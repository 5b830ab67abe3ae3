package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// Unknown is a message of a type that this version does not know. It is skipped.
type Unknown struct {
	Number Type
	Body   []byte
}

// Type implements Message.
func (u *Unknown) Type() Type { return u.Number }

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxNestedLevels:  12,
		MaxArrayElements: 2*MaxRanges + 16,
		MaxMapPairs:      256,
		NaN:              cbor.NaNDecodeForbidden,
		Inf:              cbor.InfDecodeForbidden,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic("internal error: cbor mode: " + err.Error())
	}
	return v
}

func newMessage(t Type) Message {
	switch t {
	case TypeHello:
		return new(Hello)
	case TypeWelcome:
		return new(Welcome)
	case TypeInventory:
		return new(Inventory)
	case TypeWant:
		return new(Want)
	case TypeCancel:
		return new(Cancel)
	case TypeAck:
		return new(Ack)
	case TypeGap:
		return new(GapReport)
	case TypeRefusals:
		return new(Refusals)
	case TypeSkip:
		return new(Skip)
	case TypeFork:
		return new(Fork)
	case TypeStatus:
		return new(Status)
	case TypeConfig:
		return new(Config)
	case TypeCommand:
		return new(Command)
	case TypeCommandResult:
		return new(CommandResult)
	case TypeHeartbeat:
		return new(Heartbeat)
	case TypeDrain:
		return new(Drain)
	case TypeError:
		return new(Error)
	}
	return nil
}

// Append appends m, with its length and type, to dst. Equal messages give equal
// bytes. A message that the other end would refuse is refused here.
func Append(dst []byte, m Message) ([]byte, error) {
	if err := check(m); err != nil {
		return dst, fmt.Errorf("encode message type %d: %w", m.Type(), err)
	}
	var body []byte
	if u, ok := m.(*Unknown); ok {
		body = u.Body
	} else {
		var err error
		if body, err = encMode.Marshal(m); err != nil {
			return dst, fmt.Errorf("encode message type %d: %w", m.Type(), err)
		}
	}
	var t [binary.MaxVarintLen64]byte
	tn := binary.PutUvarint(t[:], uint64(m.Type()))
	if tn+len(body) > MaxMessageBytes {
		return dst, fmt.Errorf("encode message type %d: %d bytes, the limit is %d", m.Type(), tn+len(body), MaxMessageBytes)
	}
	dst = binary.AppendUvarint(dst, uint64(tn+len(body)))
	dst = append(dst, t[:tn]...)
	return append(dst, body...), nil
}

// Decode decodes one message, type and body, without its length. A type that is
// not known comes back as *Unknown. The result shares nothing with b.
func Decode(b []byte) (Message, error) {
	if len(b) > MaxMessageBytes {
		return nil, fmt.Errorf("%w: message of %d bytes, the limit is %d", ErrMalformed, len(b), MaxMessageBytes)
	}
	t, n := binary.Uvarint(b)
	if n <= 0 {
		return nil, fmt.Errorf("%w: message without a type", ErrMalformed)
	}
	m := newMessage(Type(t))
	if m == nil {
		return &Unknown{Number: Type(t), Body: append([]byte(nil), b[n:]...)}, nil
	}
	if err := decMode.Unmarshal(b[n:], m); err != nil {
		return nil, fmt.Errorf("%w: message type %d: %v", ErrMalformed, t, err)
	}
	if err := check(m); err != nil {
		return nil, fmt.Errorf("message type %d: %w", t, err)
	}
	return m, nil
}

// Reader reads control messages from a stream.
type Reader struct {
	r   *bufio.Reader
	buf []byte
}

// NewReader reads from r, with a small buffer of its own.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 2048)} }

// Read returns the next message, skipping those of unknown type. io.EOF only
// between messages.
func (r *Reader) Read() (Message, error) {
	for {
		n, err := binary.ReadUvarint(r.r)
		if err != nil {
			return nil, err
		}
		if n == 0 || n > MaxMessageBytes {
			return nil, fmt.Errorf("%w: message of %d bytes, the limit is %d", ErrMalformed, n, MaxMessageBytes)
		}
		b, err := r.bytes(int(n))
		if err != nil {
			return nil, err
		}
		m, err := Decode(b)
		if err != nil {
			return nil, err
		}
		if _, ok := m.(*Unknown); ok {
			continue
		}
		return m, nil
	}
}

// bytes reads n bytes. The buffer grows with what has arrived, not with what a
// length promised, and a large one is not kept.
func (r *Reader) bytes(n int) ([]byte, error) {
	const step = 16 << 10
	if cap(r.buf) > 4*step {
		r.buf = nil
	}
	b := r.buf[:0]
	for len(b) < n {
		have := len(b)
		want := min(n-have, max(step, have))
		if cap(b)-have < want {
			grown := make([]byte, have, have+want)
			copy(grown, b)
			b = grown
		}
		b = b[:have+want]
		if _, err := io.ReadFull(r.r, b[have:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	r.buf = b
	return b, nil
}
