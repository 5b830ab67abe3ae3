package mqtt

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"
)

// encodeCursor is what must be durable of ss; empty = nothing. What has finished below floor is
// forgotten: nobody will read it again. Caller holds ss.mu.
func (ss *session) encodeCursor(floor map[uint32]int64) []byte {
	k := &ss.cursor
	pos := map[uint32]int64{}
	low := func(at Position) {
		if p, ok := pos[at.Part]; at.Offset >= 0 && (!ok || at.Offset < p) {
			pos[at.Part] = at.Offset
		}
	}
	for p, b := range k.behind {
		low(Position{p, b.next})
	}
	for i := range ss.queue[ss.head:] {
		if o := &ss.queue[ss.head+i]; o.group == nil { // else the group's record has it
			low(o.at)
		}
	}
	flights := 0
	for i := range ss.inflight {
		o := &ss.inflight[i]
		if o.qos == 1 && o.group == nil {
			low(o.at)
		} else if o.qos == 1 {
			continue
		} else if o.at.Offset >= 0 {
			flights++
		}
	}
	k.finished = slices.DeleteFunc(k.finished, func(at Position) bool {
		p, ok := pos[at.Part]
		return at.Offset < floor[at.Part] && !(ok && at.Offset >= p)
	})
	if len(k.finished) > maxFinished {
		k.finished = slices.Delete(k.finished, 0, len(k.finished)-maxFinished)
	}
	if len(pos) == 0 && flights == 0 && len(k.finished) == 0 {
		return nil
	}
	b := binary.AppendUvarint([]byte{cursorVersion}, uint64(len(pos)))
	for _, p := range slices.Sorted(maps.Keys(pos)) {
		b = appendPosition(b, Position{p, pos[p]})
	}
	b = binary.AppendUvarint(b, uint64(flights))
	for i := range ss.inflight {
		o := &ss.inflight[i]
		if o.qos != 2 || o.at.Offset < 0 {
			continue
		}
		b = binary.AppendUvarint(b, uint64(o.id))
		b = append(b, flag(o.released), flag(o.retain))
		b = appendPosition(b, o.at)
		b = binary.AppendUvarint(b, uint64(len(o.ids)))
		for _, id := range o.ids {
			b = binary.AppendUvarint(b, uint64(id))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(k.finished)))
	for _, at := range k.finished {
		b = appendPosition(b, at)
	}
	return b
}

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func appendPosition(b []byte, at Position) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(at.Part)), uint64(at.Offset))
}

func (r *blobs) position() Position {
	return Position{uint32(r.num()), int64(r.num() &^ (1 << 63))}
}

func (r *blobs) one() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// decodeCursor fills an empty session. Messages in flight are read from the log; what
// is not there any more is not sent again.
func (ss *session) decodeCursor(b []byte) (err error) {
	if len(b) == 0 || b[0] != cursorVersion {
		return errState
	}
	r := blobs{b: b[1:]}
	for n := r.num(); n > 0 && !r.bad; n-- {
		ss.cursor.leave(r.position())
	}
	for n := r.num(); n > 0 && !r.bad; n-- {
		o := outMsg{id: uint16(r.num()), qos: 2}
		o.released, o.retain = r.one() == 1, r.one() == 1
		o.at = r.position()
		for m := r.num(); m > 0 && !r.bad; m-- {
			o.ids = append(o.ids, uint32(r.num()))
		}
		if r.bad || o.id == 0 {
			return errState
		}
		if o.m, err = ss.srv.readAt(o.at); err != nil {
			ss.srv.log.Error("log cannot be read for a session, a delivery in flight is not sent again", "client", ss.id, "partition", o.at.Part, "offset", o.at.Offset, "error", err)
		}
		if o.m == nil && !o.released {
			continue
		}
		ss.inflight = append(ss.inflight, o)
		ss.lastID = max(ss.lastID, o.id)
	}
	for n := r.num(); n > 0 && !r.bad; n-- {
		ss.cursor.finished = append(ss.cursor.finished, r.position())
	}
	if r.bad || len(r.b) != 0 {
		return errState
	}
	return nil
}

// readAt reads one message from the log; nil when it is not there any more.
func (s *Server) readAt(at Position) (m *message, err error) {
	_, err = s.cfg.Log.Read(at.Part, at.Offset, func(off int64, st *Stored) bool {
		if off == at.Offset {
			m = st.message(at)
		}
		return false
	})
	return m, err
}

// message copies m.
func (m *Stored) message(at Position) *message {
	c := &message{topic: m.Topic, qos: m.QoS, retain: m.Retain, from: m.Client, expires: m.Expires, at: at}
	c.setContent(m.Payload, &m.Props, time.Time{})
	return c
}
