package auth

import (
	"errors"
	"net/netip"
	"sync"
	"time"
)

// ErrBusy: a login did not get its turn to be hashed.
var ErrBusy = errors.New("too many logins at once")

// Queue lets few password hashes run at once, and those of guessers last. One hash costs some
// 50 ms of a core: a flood of guesses must neither take the cores from the ingest nor keep
// devices out.
//
//   - At most Slots run at once.
//   - After one that found a wrong password nothing runs for as long as it took, and nothing of a
//     suspect (an address that has failed lately) for seven times as long: wrong passwords
//     take at most half of a slot, those of known guessers an eighth.
//   - Who is no suspect goes first. Who waits too long gets ErrBusy; when the line is full a suspect
//     makes room, then the address that has most in it. Suspects have a quarter of the line.
//   - Logins with the same credentials wait for one hash: devices that share an account and come
//     back together cost one.
//
// All methods may be used concurrently.
type Queue struct {
	Slots    int
	Waiting  int           // at most in the line
	Patience time.Duration // how long one waits
	Suspect  func(netip.Addr) bool

	mu      sync.Mutex // guards the fields below; Suspect is called with it
	running int
	rest    time.Time // nothing starts before it,
	shun    time.Time // and no suspect before this
	armed   bool      // a timer will look again
	line    []*login
	flights map[any]*flight
}

type login struct {
	from netip.Addr
	turn chan bool // one value: go on, or give up
}

type flight struct {
	done chan struct{}
	ok   bool
	err  error
}

// Do returns what verify returns, or ErrBusy. key names the credentials: while one verifies them
// others wait for its answer. An error of verify is the caller's alone.
func (q *Queue) Do(key any, from netip.Addr, verify func() (bool, error)) (ok bool, err error) {
	giveUp := time.Now().Add(q.Patience)
	for {
		q.mu.Lock()
		f := q.flights[key]
		if f == nil {
			return q.lead(key, &login{from: from, turn: make(chan bool, 1)}, giveUp, verify)
		}
		q.mu.Unlock()
		t := time.NewTimer(time.Until(giveUp))
		select {
		case <-f.done:
			t.Stop()
		case <-t.C:
			return false, ErrBusy
		}
		if f.err == nil {
			return f.ok, nil
		}
	}
}

// lead verifies, when it is l's turn. Called with mu held, which it releases.
func (q *Queue) lead(key any, l *login, giveUp time.Time, verify func() (bool, error)) (ok bool, err error) {
	f := &flight{done: make(chan struct{}), err: ErrBusy}
	if q.flights == nil {
		q.flights = map[any]*flight{}
	}
	q.flights[key] = f
	if !q.enter(l) {
		l.turn <- false
	}
	q.next()
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.flights, key)
		q.mu.Unlock()
		close(f.done)
	}()
	if !q.wait(l, giveUp) {
		return false, ErrBusy
	}
	begin := time.Now()
	defer func() { q.ended(f.err != nil || f.ok, time.Since(begin)) }() // also when verify panics
	f.ok, f.err = verify()
	return f.ok, f.err
}

// enter puts l into the line; false when there is no room. Caller holds mu.
func (q *Queue) enter(l *login) bool {
	if q.Suspect(l.from) && len(q.line) >= q.Waiting/4 {
		return false
	}
	if len(q.line) >= q.Waiting {
		victim, most := -1, 0
		of := map[netip.Addr]int{}
		for i, o := range q.line {
			n := len(q.line) + 1 // a suspect goes first, the newest of them
			if !q.Suspect(o.from) {
				of[o.from]++
				n = of[o.from]
			}
			if n >= most {
				victim, most = i, n
			}
		}
		if most <= of[l.from]+1 {
			return false
		}
		q.line[victim].turn <- false
		q.line = append(q.line[:victim], q.line[victim+1:]...)
	}
	q.line = append(q.line, l)
	return true
}

// next starts what may start. Caller holds mu.
func (q *Queue) next() {
	now := time.Now()
	for q.running < q.Slots && len(q.line) > 0 {
		i, from := -1, q.rest
		for j, l := range q.line {
			if !q.Suspect(l.from) {
				i = j
				break
			}
		}
		if i < 0 {
			i = 0
			if q.shun.After(from) {
				from = q.shun
			}
		}
		if wait := from.Sub(now); wait > 0 {
			q.lookAgain(wait)
			return
		}
		l := q.line[i]
		q.line = append(q.line[:i], q.line[i+1:]...)
		q.running++
		l.turn <- true
	}
}

func (q *Queue) lookAgain(wait time.Duration) {
	if q.armed {
		return
	}
	q.armed = true
	time.AfterFunc(wait, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.armed = false
		q.next()
	})
}

// wait reports whether it is l's turn.
func (q *Queue) wait(l *login, giveUp time.Time) bool {
	t := time.NewTimer(time.Until(giveUp))
	defer t.Stop()
	select {
	case ok := <-l.turn:
		return ok
	case <-t.C:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, o := range q.line {
		if o == l {
			q.line = append(q.line[:i], q.line[i+1:]...)
			return false
		}
	}
	return <-l.turn // it was taken out meanwhile
}

func (q *Queue) ended(ok bool, took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running--
	if !ok {
		now := time.Now()
		q.rest, q.shun = now.Add(took), now.Add(7*took)
	}
	q.next()
}
