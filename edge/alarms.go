package edge

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"tailrace/storage"
)

// Alarm is something that an operator has to know now.
type Alarm struct {
	// Kind: "disk_full" (devices are refused), "disk_error" (the log takes nothing
	// until the disk works again), "evicting" (records that the hub does not have were
	// given up in the last ten minutes), "wear" (the medium is worn out within a year
	// at this rate), "file_system" (multiplies small writes, or may not survive a power cut),
	// "budget" (a link's monthly budget is used up), "refused_topic" (the hub's rules do not let this node write a topic; its records stay here).
	Kind    string    `json:"kind"`
	Class   string    `json:"class,omitempty"` // storage class
	Message string    `json:"message"`
	Since   time.Time `json:"since"`
}

const (
	alarmFull       = "disk_full"
	alarmError      = "disk_error"
	alarmEvicting   = "evicting"
	alarmWear       = "wear"
	alarmFileSystem = "file_system"
	alarmRefused    = "refused_topic"
	alarmBudget     = "budget"

	evictingFor  = 10 * time.Minute
	minLifeYears = 1
)

var alarmKinds = []string{alarmFull, alarmError, alarmEvicting, alarmWear, alarmFileSystem, alarmRefused, alarmBudget}

// alarms remembers since when each is on, and logs when one comes or goes.
type alarms struct {
	mu     sync.Mutex // guards on
	on     []Alarm
	logger *slog.Logger
}

// update takes what is on now and returns it with the times.
func (a *alarms) update(now time.Time, list []Alarm) []Alarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	same := func(x Alarm) func(Alarm) bool {
		return func(y Alarm) bool { return x.Kind == y.Kind && x.Class == y.Class }
	}
	for i := range list {
		list[i].Since = now.UTC()
		if j := slices.IndexFunc(a.on, same(list[i])); j >= 0 {
			list[i].Since = a.on[j].Since
			continue
		}
		a.logger.Warn("alarm", "kind", list[i].Kind, "class", list[i].Class, "message", list[i].Message)
	}
	for _, x := range a.on {
		if !slices.ContainsFunc(list, same(x)) {
			a.logger.Info("alarm is over", "kind", x.Kind, "class", x.Class, "lasted", now.Sub(x.Since).Round(time.Second))
		}
	}
	a.on = list
	return slices.Clone(list)
}

// checkAlarms looks what is wrong now.
func (n *Node) checkAlarms() []Alarm {
	now, st := n.cfg.Now(), n.store.Stats()
	list := []Alarm{}
	add := func(kind, class, format string, a ...any) {
		list = append(list, Alarm{Kind: kind, Class: class, Message: fmt.Sprintf(format, a...)})
	}
	for _, c := range st.Classes {
		if c.Broken != nil {
			add(alarmError, c.Class, "the disk refuses: %v; tried again by itself", c.Broken)
		} else if c.Failing != nil && !errors.Is(c.Failing, storage.ErrFull) {
			add(alarmError, c.Class, "the last commit failed: %v; the next is tried", c.Failing)
		}
		if c.Full {
			add(alarmFull, c.Class, "no room: publishes are refused until the hub has taken data, the budget is raised or space is freed")
		}
		if !c.LastEvicted.IsZero() && now.Sub(c.LastEvicted) < evictingFor {
			add(alarmEvicting, c.Class, "%d records that the hub did not have were given up since start; they are declared lost", c.EvictedRecords)
		}
	}
	if f := n.wear.status(now, st); f.LifeYears > 0 && f.LifeYears < minLifeYears && now.Sub(n.started) > time.Hour {
		add(alarmWear, "", "storage.endurance lasts %.1f years at this rate (%.0f fsyncs a minute): raise commit_interval", f.LifeYears, f.FsyncsPerMinute)
	}
	if n.fileSystem != "" {
		add(alarmFileSystem, "", "%s", n.fileSystem)
	}
	if n.link != nil {
		if refused := n.link.State().Refused; len(refused) > 0 {
			add(alarmRefused, "", "%d topics are not taken by the hub, their records stay here: %s (%s)", len(refused), refused[0].Topic, refused[0].Reason)
		}
	}
	for _, b := range n.budgets.status() {
		if b.Monthly > 0 && b.Used >= b.Monthly {
			add(alarmBudget, b.Name, "the monthly budget of link %s is used up: %d of %d bytes", b.Name, b.Used, b.Monthly)
		}
	}
	return n.alarms.update(now, list)
}

// fileSystemWarning says what is wrong with the file system of the data directory, or "".
func fileSystemWarning(dir string) string {
	var out []string
	if fs := volatile(dir); fs != "" {
		out = append(out, fs+" may not survive a power cut: acknowledged records would be gone with it")
	}
	if fs := amplifying(dir); fs != "" {
		out = append(out, fs+" writes whole trees anew at every fsync, several times what ext4 or XFS write: it wears flash out early")
	}
	return strings.Join(out, "; ")
}
