package mqtt

import "encoding/binary"

// The window of one client, as it is stored under KindWindow:
//
//	1 byte   version = 1
//	2 bytes  number of open QoS 2 packet ids, big endian
//	2 bytes  each: packet id received and not yet released by PUBREL
//	10 bytes each: packet id (2), content hash (8) of a durable QoS 1 publish,
//	         oldest first, in the order in which they were stored
//
// A delta is what one burst adds:
//
//	2 bytes  how many entries to keep at most
//	ops      opQoS1 id hash | opReceived id | opReleased id | opReset
//
// Both are on disk: a change needs a new version byte.
const (
	windowVersion = 1
	entryBytes    = 10
	maxWindow     = 65535

	opQoS1     byte = 1
	opReceived byte = 2
	opReleased byte = 3
	opReset    byte = 4
)

// sent is what identifies one publish of a client: the packet id alone is reused
// for new messages, the content alone may repeat.
type sent struct {
	id   uint16
	hash uint64
}

func appendDeltaHead(dst []byte, keep int) []byte {
	return binary.BigEndian.AppendUint16(dst, uint16(keep))
}

func appendQoS1(dst []byte, s sent) []byte {
	dst = binary.BigEndian.AppendUint16(append(dst, opQoS1), s.id)
	return binary.BigEndian.AppendUint64(dst, s.hash)
}

func appendQoS2(dst []byte, op byte, id uint16) []byte {
	return binary.BigEndian.AppendUint16(append(dst, op), id)
}

// FoldWindow is the fold of KindWindow: it returns the window after delta. It is
// pure and total: damaged input gives the longest sensible result, never a panic,
// and the result is bounded by what the newest delta says.
func FoldWindow(old, delta []byte) []byte {
	w, _ := parseWindow(old)
	if len(delta) < 2 {
		return old
	}
	keep := int(binary.BigEndian.Uint16(delta))
	delta = delta[2:]
	if n := onlyQoS1(delta); n > 0 {
		return w.appended(delta, n, keep)
	}
	// The tail of the old entries is copied as bytes; new entries are appended.
	n := 3 + len(w.ids) + len(w.entries) + len(delta)
	ids := append(make([]byte, 0, len(w.ids)+16), w.ids...)
	entries := append(make([]byte, 0, n), w.entries...)
	for len(delta) > 0 {
		op := delta[0]
		switch {
		case op == opReset:
			ids, entries, delta = ids[:0], entries[:0], delta[1:]
		case op == opQoS1 && len(delta) >= 1+entryBytes:
			entries = append(entries, delta[1:1+entryBytes]...)
			delta = delta[1+entryBytes:]
		case (op == opReceived || op == opReleased) && len(delta) >= 3:
			i := findID(ids, delta[1], delta[2])
			if op == opReceived && i < 0 && len(ids) < 2*maxWindow {
				ids = append(ids, delta[1], delta[2])
			} else if op == opReleased && i >= 0 {
				ids = append(ids[:i], ids[i+2:]...)
			}
			delta = delta[3:]
		default:
			delta = nil
		}
	}
	if over := len(entries) - keep*entryBytes; over > 0 {
		entries = entries[over:]
	}
	out := make([]byte, 0, 3+len(ids)+len(entries))
	out = append(out, windowVersion)
	out = binary.BigEndian.AppendUint16(out, uint16(len(ids)/2))
	out = append(out, ids...)
	return append(out, entries...)
}

// onlyQoS1 is the number of entries of a delta that has nothing else, else 0: nearly
// all deltas are so, one per burst of every client.
func onlyQoS1(delta []byte) int {
	if len(delta)%(1+entryBytes) != 0 {
		return 0
	}
	for i := 0; i < len(delta); i += 1 + entryBytes {
		if delta[i] != opQoS1 {
			return 0
		}
	}
	return len(delta) / (1 + entryBytes)
}

// appended is the window after the n QoS 1 entries of delta, built with one copy.
func (w windowBytes) appended(delta []byte, n, keep int) []byte {
	over := max(0, len(w.entries)/entryBytes+n-keep)
	skip := max(0, over-len(w.entries)/entryBytes) // of the new ones
	old := w.entries[(over-skip)*entryBytes:]
	out := make([]byte, 0, 3+len(w.ids)+len(old)+(n-skip)*entryBytes)
	out = append(out, windowVersion)
	out = binary.BigEndian.AppendUint16(out, uint16(len(w.ids)/2))
	out = append(append(out, w.ids...), old...)
	for i := skip; i < n; i++ {
		out = append(out, delta[i*(1+entryBytes)+1:][:entryBytes]...)
	}
	return out
}

func findID(ids []byte, hi, lo byte) int {
	for i := 0; i+1 < len(ids); i += 2 {
		if ids[i] == hi && ids[i+1] == lo {
			return i
		}
	}
	return -1
}

type windowBytes struct{ ids, entries []byte }

func parseWindow(b []byte) (w windowBytes, ok bool) {
	if len(b) < 3 || b[0] != windowVersion {
		return w, len(b) == 0
	}
	n := 2 * int(binary.BigEndian.Uint16(b[1:]))
	b = b[3:]
	if len(b) < n || (len(b)-n)%entryBytes != 0 {
		return w, false
	}
	return windowBytes{b[:n], b[n:]}, true
}

// openIDs are the QoS 2 packet ids of a stored window.
func (w windowBytes) openIDs() map[uint16]struct{} {
	if len(w.ids) == 0 {
		return nil
	}
	m := make(map[uint16]struct{}, len(w.ids)/2)
	for i := 0; i < len(w.ids); i += 2 {
		m[binary.BigEndian.Uint16(w.ids[i:])] = struct{}{}
	}
	return m
}

// sents are the QoS 1 entries of a stored window, oldest first.
func (w windowBytes) sents() []sent {
	out := make([]sent, 0, len(w.entries)/entryBytes)
	for e := w.entries; len(e) >= entryBytes; e = e[entryBytes:] {
		out = append(out, sent{binary.BigEndian.Uint16(e), binary.BigEndian.Uint64(e[2:])})
	}
	return out
}
