package mqtt

// Resends recognises redelivered messages of a broker by the same window and the same
// proof as those of devices (see lineup): packet id and content hash, in order.
//
// window is the folded state of KindWindow, keep as in AppendSettled.
func Resends(window []byte, keep int, resent []Settled) (known int) {
	w, ok := parseWindow(window)
	stored := w.sents()
	if !ok || len(stored) == 0 {
		return 0
	}
	l := lineup{stored: stored, full: len(stored) >= keep}
	for i, s := range resent {
		switch l.feed(sent{s.ID, s.Hash}) {
		case duplicate:
			return i + 1
		case fresh, ambiguous:
			return 0
		}
	}
	return 0 // the sequences do not line up to the end: nothing is proven
}

// Settled is one message that is durable, or decided for good.
type Settled struct {
	ID   uint16
	Hash uint64
}

// HashOf is the content hash of a message.
func HashOf(topic string, qos byte, retain bool, payload []byte) uint64 {
	return contentHash(hash64(0, []byte(topic)), qos, retain, payload)
}

// AppendSettled appends to a delta of KindWindow, which it begins when dst is empty; at
// most keep messages are remembered. AppendForget makes the window empty.
func AppendSettled(dst []byte, keep int, s Settled) []byte {
	if len(dst) == 0 {
		dst = appendDeltaHead(dst, keep)
	}
	return appendQoS1(dst, sent{s.ID, s.Hash})
}

func AppendForget(dst []byte, keep int) []byte {
	if len(dst) == 0 {
		dst = appendDeltaHead(dst, keep)
	}
	return append(dst, opReset)
}
