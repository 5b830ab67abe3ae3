package kafka

import (
	"context"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ServeConn serves one connection.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) { newConn(s, nc).serve(ctx) }

// Expire runs the periodic clean-up.
func (s *Server) Expire(ctx context.Context) error {
	if err := s.producers.expire(ctx); err != nil {
		return err
	}
	return s.groups.expire(ctx)
}

// Versions lists what is advertised: key to lowest and highest version.
func Versions() map[int16][2]int16 {
	out := make(map[int16][2]int16)
	for _, a := range table() {
		out[a.key] = [2]int16{a.min, a.max}
	}
	return out
}

// FetchPart is one partition of a response to encode.
type FetchPart struct {
	Partition  int32
	Code       int16
	HW, Start  int64
	Records    []byte
	TopicIndex int
}

// EncodeFetch encodes a response as the fetch handler does.
func EncodeFetch(version int16, correlation int32, committed bool, topics []string, parts []FetchPart) []byte {
	j := &fetchJob{}
	for i, name := range topics {
		ft := fetchTopic{name: name, from: len(j.parts)}
		for _, p := range parts {
			if p.TopicIndex != i {
				continue
			}
			fp := fetchPart{index: p.Partition, hw: p.HW, start: p.Start, from: len(j.data)}
			if p.Code != 0 {
				fp.err = kerrOf(p.Code)
			}
			j.data = append(j.data, p.Records...)
			fp.to = len(j.data)
			j.parts = append(j.parts, fp)
		}
		ft.to = len(j.parts)
		j.topics = append(j.topics, ft)
	}
	j.encode(header{key: kmsg.Fetch.Int16(), version: version, correlation: correlation, flexible: flexible(1, version)}, committed)
	var out []byte
	for _, p := range j.pieces {
		out = append(out, p...)
	}
	return out
}

func kerrOf(code int16) *kerr.Error {
	e, _ := kerr.ErrorForCode(code).(*kerr.Error)
	return e
}

// SoundFlexible checks a body of a flexible version before kmsg reads it.
func SoundFlexible(key, version int16, body []byte) (rest []byte, ok bool) {
	return soundFlexible(key, version, body)
}
