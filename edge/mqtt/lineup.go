package mqtt

// lineup decides which re-sent publishes (DUP = 1) of a resumed session are already
// durable. It is a plain value: no I/O, no clock.
//
// A client re-sends what is unacknowledged, in the order of the first sending
// (MQTT 5.0, 4.4.0-1 and 4.6.0-1). Publishes are stored and acknowledged in order.
// So what is both stored and unacknowledged is a suffix of what is stored and a
// prefix of what is re-sent, and nothing else is dropped:
//
//	stored    … a b c d e
//	re-sent         d e f g      d, e are duplicates; f, g are new
//
// Packet ids are distinct among the unacknowledged, so at most one length of the
// overlap is possible, and the first that completes is the one.
//
// One doubt is left: a client that reuses packet ids at once for equal content (id
// 1, payload "0", again and again) may have had its last one acknowledged and the
// next one lost. Its stored sequence shows this habit: the very pair (id, content)
// occurs before the overlap, too. If every pair of the overlap does, nothing proves
// the overlap, and the re-sends are stored and counted. One pair that occurs only
// once proves all others, by the order.
type lineup struct {
	stored []sent
	cand   []int // starts in stored at which all re-sends so far match
	n      int   // re-sends seen
	hit    bool  // the first re-send matched somewhere
}

type verdict byte

const (
	undecided verdict = iota
	duplicate         // all re-sends so far are durable; what follows is new
	fresh             // none is, and nothing looked like it
	ambiguous         // something matched but the sequences do not line up
)

// feed takes the next re-send. After any verdict but undecided the lineup is over.
func (l *lineup) feed(s sent) verdict {
	if l.n == 0 {
		for i, x := range l.stored {
			if x == s {
				l.cand = append(l.cand, i)
			}
		}
		l.hit = len(l.cand) > 0
	} else {
		keep := l.cand[:0]
		for _, i := range l.cand {
			if l.stored[i+l.n] == s { // in range: a start that reached the end had ended it
				keep = append(keep, i)
			}
		}
		l.cand = keep
	}
	l.n++
	if len(l.cand) == 0 {
		return l.end()
	}
	for _, i := range l.cand {
		if i+l.n == len(l.stored) {
			if l.proven(i) {
				return duplicate
			}
			return ambiguous
		}
	}
	return undecided
}

// end is the verdict when the re-sends are over before the sequences lined up.
func (l *lineup) end() verdict {
	if l.hit {
		return ambiguous
	}
	return fresh
}

// proven reports whether a pair of the overlap stored[i:] occurs nowhere before it.
func (l *lineup) proven(i int) bool {
	before := make(map[sent]struct{}, i)
	for _, s := range l.stored[:i] {
		before[s] = struct{}{}
	}
	for _, s := range l.stored[i:] {
		if _, ok := before[s]; !ok {
			return true
		}
	}
	return false
}
