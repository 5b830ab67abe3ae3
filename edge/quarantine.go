package edge

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"tailrace/edge/mqtt"
	"tailrace/edge/mqtt/packet"
)

// quarantine keeps devices out for a while that break the protocol or their limits again and
// again: a device in a tight loop of connect, nonsense, close costs more than one that is
// out, and an operator sees which and why. A strike is forgotten after the window.
type quarantine struct {
	strikes int           // within window; 0 = no quarantine
	window  time.Duration // and how long one stays out
	logger  *slog.Logger
	now     func() time.Time

	mu      sync.Mutex // guards the fields below
	suspect map[string]*suspect
	total   map[string]uint64 // quarantines by reason
}

type suspect struct {
	client, identity string
	reason           string
	count            int
	first            time.Time
	until            time.Time // zero = only suspected
}

// maxSuspects bounds what is remembered; a flood of names pushes out suspicions, and
// those in quarantine only when all are.
const maxSuspects = 4096

func newQuarantine(c QuarantineConfig, now func() time.Time, logger *slog.Logger) *quarantine {
	return &quarantine{strikes: c.Strikes, window: c.Duration, logger: logger, now: now, suspect: map[string]*suspect{}, total: map[string]uint64{}}
}

// A device is a client id under an identity: nobody can bring another identity's device in.
func suspectKey(c *mqtt.Client) string { return c.Identity + "\x00" + c.ID }

// offence names what a connection was ended for, if the device is to blame.
func offence(code packet.Code, err error) string {
	var pe *packet.Error
	switch {
	case code == packet.PacketTooLarge:
		return "packet too large"
	case code == packet.ReceiveMaxExceeded:
		return "more in flight than allowed"
	case errors.As(err, &pe):
		return "protocol: " + pe.What
	}
	return ""
}

// strike notes an offence and reports whether the device is in quarantine now.
func (q *quarantine) strike(c *mqtt.Client, reason string) bool {
	if q.strikes <= 0 || c.Assigned { // an id that nobody has again
		return false
	}
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	key := suspectKey(c)
	s := q.suspect[key]
	if s != nil && s.over(now, q.window) {
		s = nil
	}
	if s == nil {
		if len(q.suspect) >= maxSuspects {
			q.forget(now)
		}
		s = &suspect{client: c.ID, identity: c.Identity, first: now}
		q.suspect[key] = s
	}
	s.count++
	s.reason = reason
	if s.count < q.strikes || !s.until.IsZero() {
		return !s.until.IsZero()
	}
	s.until = now.Add(q.window)
	kind, _, _ := strings.Cut(reason, ":")
	q.total[kind]++
	q.logger.Warn("device is in quarantine", "client", c.ID, "identity", c.Identity, "remote", c.Remote, "reason", reason, "times", s.count, "for", q.window)
	return true
}

func (s *suspect) over(now time.Time, window time.Duration) bool {
	if !s.until.IsZero() {
		return !now.Before(s.until)
	}
	return now.Sub(s.first) >= window
}

// forget is called with mu held.
func (q *quarantine) forget(now time.Time) {
	for k, s := range q.suspect {
		if s.over(now, q.window) {
			delete(q.suspect, k)
		}
	}
	for _, quarantined := range []bool{false, true} {
		for k, s := range q.suspect {
			if len(q.suspect) < maxSuspects*3/4 {
				return
			}
			if quarantined || s.until.IsZero() {
				delete(q.suspect, k)
			}
		}
	}
}

// check refuses a device in quarantine.
func (q *quarantine) check(c *mqtt.Client) error {
	if q.strikes <= 0 {
		return nil
	}
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.suspect[suspectKey(c)]
	if s == nil || s.until.IsZero() || s.over(now, q.window) {
		return nil
	}
	return refusal(packet.QuotaExceeded, "in quarantine for %v more: %s", s.until.Sub(now).Round(time.Second), s.reason)
}

// QuarantinedDevice is one device that is kept out.
type QuarantinedDevice struct {
	Client   string    `json:"client"`
	Identity string    `json:"identity"`
	Reason   string    `json:"reason"`
	Strikes  int       `json:"strikes"`
	Until    time.Time `json:"until"`
}

// list returns who is out, soonest back first, and the counters.
func (q *quarantine) list() (out []QuarantinedDevice, total map[string]uint64) {
	now := q.now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.suspect {
		if !s.until.IsZero() && !s.over(now, q.window) {
			out = append(out, QuarantinedDevice{s.client, s.identity, s.reason, s.count, s.until.UTC()})
		}
	}
	slices.SortFunc(out, func(a, b QuarantinedDevice) int { return a.Until.Compare(b.Until) })
	total = map[string]uint64{}
	for k, n := range q.total {
		total[k] = n
	}
	return out, total
}
