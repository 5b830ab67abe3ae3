package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"tailrace/storage"
	"tailrace/uplink/link"
	"tailrace/uplink/wire"
)

// LinkConfig is a class of links, chosen by the interface that leads to the hub.
type LinkConfig struct {
	// Name: lte, satellite, …
	Name string `yaml:"name"`
	// Match are patterns of interface names: [wwan*, ppp0]; [*] is every one. The first
	// class that fits counts.
	Match []string `yaml:"match"`
	// RateLimit instead of uplink.rate_limit.
	RateLimit ByteSize `yaml:"rate_limit"`
	// Monthly is how many bytes a month the link may carry, both ways, packet headers
	// included; 0 = no budget.
	Monthly ByteSize `yaml:"monthly"`
	// ResetDay is the day of the month on which it begins anew, 1 to 28; default 1.
	ResetDay int `yaml:"reset_day"`
	// WhenOut: "pause" (default: streams of priority 1 and above, and control, go on),
	// "pause-bulk" (new records go on, too; a backlog waits) or "warn" (all goes on).
	WhenOut string `yaml:"when_out"`
	// Schedule are the windows in which everything may go; none = always.
	Schedule []WindowConfig `yaml:"schedule"`
	// Outside them: "pause" (default) or "pause-bulk".
	Outside string `yaml:"outside"`
}

// WindowConfig is a window of local time.
type WindowConfig struct {
	// Days: mon, tue, …; none = every day. A window over midnight belongs to the day it begins on.
	Days []string `yaml:"days"`
	From string   `yaml:"from"` // 22:00
	To   string   `yaml:"to"`   // 06:00; the same as from = all day
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func clockMinutes(s string) (int, error) {
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, fmt.Errorf("%q: want a time of day such as 22:00", s)
	}
	return t.Hour()*60 + t.Minute(), nil
}

func (w WindowConfig) open(t time.Time) bool {
	from, _ := clockMinutes(w.From) // checked by validate
	to, _ := clockMinutes(w.To)
	at, day := t.Hour()*60+t.Minute(), t.Weekday()
	on := func(d time.Weekday) bool { return len(w.Days) == 0 || slices.Contains(w.Days, weekdays[d]) }
	switch {
	case from == to:
		return on(day)
	case from < to:
		return on(day) && at >= from && at < to
	case at >= from:
		return on(day)
	default: // over midnight: the day before began it
		return at < to && on((day+6)%7)
	}
}

func (c Config) validateLinks(bad func(bool, string, ...any)) {
	names := map[string]bool{}
	for i, l := range c.Uplink.Links {
		bad(l.Name != "" && !names[l.Name] && !strings.ContainsAny(l.Name, "/ "), "uplink.links[%d].name %q: required, once, without blanks and slashes", i, l.Name)
		names[l.Name] = true
		bad(len(l.Match) > 0, "uplink.links[%d].match: required, for example [wwan*]", i)
		for _, m := range l.Match {
			_, err := path.Match(m, "x")
			bad(err == nil && m != "", "uplink.links[%d].match %q: want a pattern of interface names", i, m)
		}
		bad(l.RateLimit == 0 || l.RateLimit >= 1<<10, "uplink.links[%d].rate_limit %v: want at least 1KiB", i, l.RateLimit)
		bad(l.Monthly >= 0, "uplink.links[%d].monthly: negative", i)
		bad(l.ResetDay >= 0 && l.ResetDay <= 28, "uplink.links[%d].reset_day %d: want 1 to 28", i, l.ResetDay)
		bad(slices.Contains([]string{"", "pause", "pause-bulk", "warn"}, l.WhenOut), "uplink.links[%d].when_out %q: want pause, pause-bulk or warn", i, l.WhenOut)
		bad(slices.Contains([]string{"", "pause", "pause-bulk"}, l.Outside), "uplink.links[%d].outside %q: want pause or pause-bulk", i, l.Outside)
		for _, w := range l.Schedule {
			_, e1 := clockMinutes(w.From)
			_, e2 := clockMinutes(w.To)
			bad(e1 == nil && e2 == nil, "uplink.links[%d].schedule: from %q to %q: want times of day such as 22:00", i, w.From, w.To)
			for _, d := range w.Days {
				bad(slices.Contains(weekdays, d), "uplink.links[%d].schedule.days %q: want mon, tue, wed, thu, fri, sat, sun", i, d)
			}
		}
	}
}

// budgets holds what the classes of links have used, and says what may go now.
//
// What is on disk is never less than what was used: it is written ahead, a step at a time,
// so that a node that loses power again and again overruns no budget. A new period begins
// by a clock that is known only: one in 1970 leaves the period as it is.
type budgets struct {
	conf   []LinkConfig
	rate   int64 // uplink.rate_limit
	store  *storage.Store
	link   *link.Client
	warn   func(msg string, args ...any)
	now    func() (t time.Time, known bool)
	iface  func(hub string) string
	active int    // in conf, -1 = none; owned by tick
	remote string // the hub's address on the network, as last connected; owned by tick

	mu    sync.Mutex // guards the following
	used  []usage
	count int64 // of the link, at the last look
	on    int   // active, for readers
	name  string
	held  string
}

// usage is a period of one class. JSON in a KindMeta entry "budget/<name>".
type usage struct {
	Period string `json:"period"` // "2026-11", the month in which it began; empty = not known yet
	Used   int64  `json:"used"`
	Since  int64  `json:"since"` // ms since 1970, when counting began in it; 0 = not known
	saved  int64  // Used on disk
}

const budgetTick = time.Second

func newBudgets(c Config, store *storage.Store, l *link.Client, now func() (time.Time, bool)) *budgets {
	b := &budgets{conf: c.Uplink.Links, rate: int64(c.Uplink.RateLimit), store: store, link: l, now: now, iface: c.Interface, active: -1, on: -1, warn: c.Logger.Warn}
	if b.iface == nil {
		b.iface = interfaceTo
	}
	b.used = make([]usage, len(b.conf))
	for i, l := range b.conf {
		if v, ok := store.State(storage.KindMeta, "budget/"+l.Name); ok {
			if err := json.Unmarshal(v, &b.used[i]); err != nil {
				b.warn("what a link has used is not understood and counts from 0", "link", l.Name, "err", err)
			}
			b.used[i].saved = b.used[i].Used
		}
	}
	return b
}

// run looks once a second until ctx ends, and then writes what was used.
func (b *budgets) run(ctx context.Context) {
	if len(b.conf) == 0 {
		return
	}
	t := time.NewTicker(budgetTick)
	defer t.Stop()
	for {
		b.tick()
		select {
		case <-ctx.Done():
			b.tick()
			b.flush()
			return
		case <-t.C:
		}
	}
}

// tick counts, begins periods, and sets what may go.
func (b *budgets) tick() {
	total := b.link.Traffic()
	st := b.link.State()
	t, known := b.now()
	b.mu.Lock()
	grown := total - b.count
	b.count = total
	if b.active >= 0 {
		b.used[b.active].Used += grown
	}
	for i := range b.used {
		b.used[i].begin(period(t, b.conf[i].ResetDay), t, known)
	}
	if st.Remote != "" {
		b.remote = st.Remote
	}
	name := b.iface(b.remote)
	b.active = b.classOf(name)
	p := link.Open(b.rate)
	held := ""
	if b.active >= 0 {
		c, u := &b.conf[b.active], &b.used[b.active]
		if c.RateLimit > 0 {
			p.RateLimit = int64(c.RateLimit)
		}
		held = c.held(u, t, known, &p)
	}
	if held != b.held {
		b.warn("what may use the link changed", "link", b.nameOf(b.active), "interface", name, "held", held)
	}
	b.on, b.name, b.held = b.active, name, held
	b.save(false)
	b.mu.Unlock()
	b.link.SetPolicy(p)
}

// held restrains p, and says why.
func (c *LinkConfig) held(u *usage, t time.Time, known bool, p *link.Policy) string {
	var why []string
	pause := func(how, reason string) {
		p.Floor[wire.LaneBackfill], p.Floor[wire.LaneBulk] = 1, 1
		if how != "pause-bulk" {
			p.Floor[wire.LaneLive] = 1
			reason += ": only streams of priority 1 and above go"
		} else {
			reason += ": a backlog waits, new records go"
		}
		why = append(why, reason)
	}
	if c.Monthly > 0 && u.Used >= int64(c.Monthly) && c.WhenOut != "warn" {
		pause(c.WhenOut, "the monthly budget is used up")
	}
	if len(c.Schedule) > 0 && known && !slices.ContainsFunc(c.Schedule, func(w WindowConfig) bool { return w.open(t.Local()) }) {
		pause(c.Outside, "outside the schedule")
	}
	return strings.Join(why, "; ")
}

func (b *budgets) nameOf(i int) string {
	if i < 0 {
		return ""
	}
	return b.conf[i].Name
}

func (b *budgets) classOf(iface string) int {
	return slices.IndexFunc(b.conf, func(l LinkConfig) bool {
		return slices.ContainsFunc(l.Match, func(m string) bool { ok, _ := path.Match(m, iface); return ok })
	})
}

// period is the month in which the period of t began.
func period(t time.Time, resetDay int) string {
	if t = t.Local(); t.Day() < max(resetDay, 1) {
		t = t.AddDate(0, 0, -t.Day()) // the last day of the month before
	}
	return t.Format("2006-01")
}

// begin takes the time: a later period begins with nothing used, an earlier one means
// that the clock was wrong before, and goes on.
func (u *usage) begin(now string, t time.Time, known bool) {
	if !known || now == u.Period {
		return
	}
	if u.Period != "" && now > u.Period {
		u.Used = 0
		u.Since = 0
	}
	u.Period, u.saved = now, -1
	if u.Since == 0 {
		u.Since = t.UnixMilli()
	}
}

// end of a period.
func periodEnd(t time.Time, resetDay int) time.Time {
	t, day := t.Local(), max(resetDay, 1)
	end := time.Date(t.Year(), t.Month(), day, 0, 0, 0, 0, t.Location())
	if !end.After(t) {
		end = end.AddDate(0, 1, 0)
	}
	return end
}

// save writes what was used where it is more than is on disk: ahead of it, or exactly.
// Called with mu held.
func (b *budgets) save(exact bool) {
	var a *storage.Append
	for i := range b.used {
		u := &b.used[i]
		if u.Used <= u.saved && !(exact && u.saved > u.Used) {
			continue
		}
		v := *u
		if !exact {
			v.Used += max(64<<10, int64(b.conf[i].Monthly)/200)
		}
		data, err := json.Marshal(v)
		if err != nil {
			continue
		}
		if a == nil {
			a = b.store.NewAppend("")
		}
		a.Set(storage.KindMeta, "budget/"+b.conf[i].Name, data)
		u.saved = v.Used
	}
	if a != nil {
		b.store.Submit(a, func(_ *storage.Append, err error) {
			if err != nil {
				b.warn("what the links have used is not saved", "err", err)
				b.mu.Lock()
				for i := range b.used {
					b.used[i].saved = -1
				}
				b.mu.Unlock()
			}
		})
	}
}

func (b *budgets) flush() {
	b.mu.Lock()
	b.save(true)
	b.mu.Unlock()
}

// status describes every class.
func (b *budgets) status() []wire.LinkBudget {
	if b == nil {
		return nil
	}
	t, known := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]wire.LinkBudget, 0, len(b.conf))
	for i := range b.conf {
		c, u := &b.conf[i], &b.used[i]
		l := wire.LinkBudget{Name: c.Name, RateLimit: int64(c.RateLimit), Monthly: int64(c.Monthly), Used: u.Used}
		if l.RateLimit == 0 {
			l.RateLimit = b.rate
		}
		if i == b.on {
			l.Interface, l.Held = b.name, b.held
		}
		if known && u.Since > 0 {
			end := periodEnd(t, c.ResetDay)
			l.EndsMS = end.UnixMilli()
			elapsed := max(t.Sub(time.UnixMilli(u.Since)), time.Hour)
			l.Forecast = u.Used + int64(float64(u.Used)/elapsed.Seconds()*end.Sub(t).Seconds())
		}
		out = append(out, l)
	}
	return out
}

// interfaceTo is the interface by which packets to a hub's address leave; "" = none, or
// not known.
func interfaceTo(hub string) string {
	if hub == "" {
		return ""
	}
	c, err := net.Dial("udp", hub) // sends nothing
	if err != nil {
		return ""
	}
	defer c.Close()
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return ""
	}
	list, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(local.IP) {
				return i.Name
			}
		}
	}
	return ""
}

// budgetTime is the time by which budgets and schedules go: our own clock when it is
// trusted, else the hub's while we hear it.
func (n *Node) budgetTime() (time.Time, bool) {
	now := n.cfg.Now()
	if n.clockTrusted() {
		return now, true
	}
	if n.link != nil {
		if st := n.link.State(); st.Connected && st.ClockOffset != 0 {
			return now.Add(st.ClockOffset), true
		}
	}
	return now, false
}
