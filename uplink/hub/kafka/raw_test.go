package kafka_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// raw is a client that sends exactly what a test wants.
type raw struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
	id int32
}

func (h *hub) raw() *raw {
	h.t.Helper()
	nc, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	return &raw{t: h.t, nc: nc, br: bufio.NewReader(nc)}
}

func frame(req kmsg.Request, correlation int32) []byte {
	f := kmsg.NewRequestFormatter(kmsg.FormatterClientID("test"))
	return f.AppendRequest(nil, req, correlation)
}

func (r *raw) send(req kmsg.Request) {
	r.t.Helper()
	r.id++
	if _, err := r.nc.Write(frame(req, r.id)); err != nil {
		r.t.Fatal(err)
	}
}

// receive reads the answer to the n-th request.
func (r *raw) receive(req kmsg.Request, correlation int32) kmsg.Response {
	r.t.Helper()
	body, err := r.frame()
	if err != nil {
		r.t.Fatalf("answer to %s v%d: %v", kmsg.NameForKey(req.Key()), req.GetVersion(), err)
	}
	if got := int32(binary.BigEndian.Uint32(body)); got != correlation {
		r.t.Fatalf("correlation %d, want %d", got, correlation)
	}
	body = body[4:]
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && req.Key() != 18 {
		if body[0] != 0 {
			r.t.Fatal("tagged fields in the header")
		}
		body = body[1:]
	}
	if err := resp.ReadFrom(body); err != nil {
		r.t.Fatalf("%s v%d: %v", kmsg.NameForKey(req.Key()), req.GetVersion(), err)
	}
	// Nothing may follow what the version has.
	if again := resp.AppendTo(nil); len(again) != len(body) {
		r.t.Fatalf("%s v%d: answer has %d bytes, its fields take %d", kmsg.NameForKey(req.Key()), req.GetVersion(), len(body), len(again))
	}
	return resp
}

func (r *raw) frame() ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r.br, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(r.br, b)
	return b, err
}

func ask[Resp kmsg.Response](r *raw, req kmsg.Request, version int16) Resp {
	r.t.Helper()
	req.SetVersion(version)
	r.send(req)
	return r.receive(req, r.id).(Resp)
}

// closed fails unless the server hangs up without another word.
func (r *raw) closed(why string) {
	r.t.Helper()
	if b, err := r.frame(); err == nil {
		r.t.Fatalf("%s: got an answer of %d bytes", why, len(b))
	} else if ne, ok := err.(net.Error); ok && ne.Timeout() {
		r.t.Fatalf("%s: the connection stays open", why)
	}
}
