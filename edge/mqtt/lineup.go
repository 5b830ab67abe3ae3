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
//
// The window forgets. A client of MQTT 3 may have more in flight than it holds (paho
// 1.6 for Python re-sends its whole queue at once): then the re-sends begin before
// the window does, and the whole window lies inside them:
//
//	stored    … (b c) d e f      window d e f, full
//	re-sent       b c d e f g
//
// That is looked for only when the packet ids say so; see older.
type lineup struct {
	stored []sent
	full   bool  // older entries may have been forgotten
	cand   []int // starts in stored at which all re-sends since base match
	base   int   // re-sends before the first that matched
	n      int   // re-sends seen
	hit    bool  // a re-send matched somewhere
	search bool  // waits for the re-send that begins the window
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
	switch {
	case l.search:
		if s != l.stored[0] {
			l.n++
			return undecided
		}
		l.search, l.hit = false, true
		l.base, l.cand = l.n, append(l.cand, 0)
	case l.n == 0:
		for i, x := range l.stored {
			if x == s {
				l.cand = append(l.cand, i)
			}
		}
		l.hit = len(l.cand) > 0
		if !l.hit && l.full && l.older(s.id) {
			l.search = true
			l.n++
			return undecided
		}
	default:
		keep := l.cand[:0]
		for _, i := range l.cand {
			if l.stored[i+l.n-l.base] == s { // in range: a start that reached the end had ended it
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
		if i+l.n-l.base == len(l.stored) {
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
	if l.hit || l.search {
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

// older reports whether a re-send with this packet id may have been stored before
// the window begins. Then everything in the window is unacknowledged like itself, so
// all ids differ; and a client that counts its ids up has this one before the first
// of the window rather than behind the last. A wrong yes costs a client some waiting
// (holdTime), a wrong no stores its re-sends again; neither loses anything.
func (l *lineup) older(id uint16) bool {
	seen := make(map[uint16]struct{}, len(l.stored))
	for _, s := range l.stored {
		if _, twice := seen[s.id]; twice || s.id == id {
			return false
		}
		seen[s.id] = struct{}{}
	}
	before := l.stored[0].id - id
	behind := id - l.stored[len(l.stored)-1].id
	return before < behind
}
