package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tailrace/storage/internal/durable"
)

// RepairConfig is what [RepairDir] needs.
type RepairConfig struct {
	Dir   string
	Folds map[StateKind]FoldFunc // those that the daemon opens the store with
	// Progress, which may be nil, is told the bytes of the log read and in all; the
	// log is read before and after.
	Progress func(done, total int64)
	FS       FS               // nil: the operating system's
	Now      func() time.Time // nil: time.Now
}

// RepairReport is what RepairDir did.
type RepairReport struct {
	Before *Inspection `json:"before"`
	After  *Inspection `json:"after"`  // the same as Before when there was nothing to do
	Copies []string    `json:"copies"` // of every file as it was, below Dir
	Done   []Repair    `json:"done"`
	Epoch  int32       `json:"epoch"` // that the log is in now; 0 when nothing was done
}

// ErrInUse says that a process has the store open.
var ErrInUse = errors.New("the store is in use by a running daemon: stop it first")

// RepairDir does to a directory what the next Open would do, and what Open leaves
// because a side file vouches for a segment: it cuts the torn tail, puts damage
// entries in the place of rot, sets stray segments aside, declares the ranges that
// are gone, and begins a new epoch when anything was cut.
//
// It takes the store's lock. Before anything is changed, every file that will be is
// copied to the class's quarantine; if that fails, nothing is changed. A directory
// with nothing to repair is not touched. Doing it again changes nothing. Interrupted
// at any point it leaves what Open repairs.
func RepairDir(c RepairConfig) (*RepairReport, error) {
	if c.FS == nil {
		c.FS = durable.OS{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if _, err := os.Stat(filepath.Join(c.Dir, "IDENTITY")); err != nil {
		return nil, fmt.Errorf("%s is not a store's directory: %w", c.Dir, err)
	}
	lock, err := c.FS.Lock(filepath.Join(c.Dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrInUse, err)
	}
	unlock := true
	defer func() {
		if unlock {
			lock.Close()
		}
	}()
	r := &RepairReport{Copies: []string{}, Done: []Repair{}}
	if r.Before, err = Inspect(c.Dir, c.Progress); err != nil {
		return nil, err
	}
	r.After = r.Before
	if !slices.ContainsFunc(r.Before.Problems, func(p Problem) bool { return !p.Settled }) {
		return r, nil
	}
	if r.Copies, err = c.keep(r.Before); err != nil {
		return nil, fmt.Errorf("nothing was changed: a copy of what would be cut cannot be kept: %w", err)
	}
	cfg := Config{Dir: c.Dir, FS: c.FS, Folds: c.Folds, RetentionInterval: -1, Now: c.Now}
	for _, k := range r.Before.Classes {
		for _, p := range r.Before.Problems { // Open must read it, whatever its side file says
			if first, ok := segmentFirst(p.File); ok && p.Class == k.Class && p.Severity == "loss" {
				if err := c.FS.Remove(filepath.Join(c.Dir, k.Class, "index", segmentName(first)+".idx")); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return nil, err
				}
			}
		}
		cfg.Classes = append(cfg.Classes, ClassConfig{Name: k.Class, MinFreeBytes: 1})
	}
	if cfg.Classes, err = firstClass(r.Before, cfg.Classes); err != nil {
		return nil, err
	}
	unlock = false // the store closes it
	s, err := open(cfg, lock, true)
	if err != nil {
		return nil, fmt.Errorf("the files as they were are kept as %v: %w", r.Copies, err)
	}
	id := s.Identity()
	r.Done, r.Epoch = id.Recovered, id.Epoch.Number
	err = s.repairCompacted()
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	r.After, err = Inspect(c.Dir, c.Progress)
	return r, err
}

// firstClass puts the class that keeps the epochs first, as the daemon has it.
func firstClass(in *Inspection, classes []ClassConfig) ([]ClassConfig, error) {
	if len(classes) == 0 {
		return nil, errors.New("the directory holds no storage class")
	}
	for i, k := range in.Classes {
		if k.State[kindEpoch.String()] > 0 {
			classes[0], classes[i] = classes[i], classes[0]
			return classes, nil
		}
	}
	if len(classes) > 1 {
		return nil, errors.New("no storage class tells the store's epochs: start the daemon, which knows which one is the first")
	}
	return classes, nil
}

// keep copies every file with something wrong in it.
func (c *RepairConfig) keep(in *Inspection) (copies []string, err error) {
	copies = []string{}
	seen := map[string]bool{}
	for _, p := range in.Problems {
		name := filepath.Join(p.Class, logFile(p.File))
		if p.Settled || p.File == "" || seen[name] {
			continue
		}
		seen[name] = true
		to := filepath.Join(p.Class, "quarantine", fmt.Sprintf("%s.check.%d", filepath.Base(p.File), c.Now().UnixMilli()))
		if err := c.FS.MkdirAll(filepath.Join(c.Dir, p.Class, "quarantine"), dirPerm); err != nil {
			return nil, err
		}
		err := copyAside(c.FS, filepath.Join(c.Dir, name), filepath.Join(c.Dir, to))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		copies = append(copies, to)
	}
	return copies, nil
}
