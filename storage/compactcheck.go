package storage

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"tailrace/storage/internal/durable"
	"tailrace/storage/record"
)

// compacted checks the files of compacted partitions.
func (x *inspector) compacted(dir string) {
	for _, k := range x.state.keys(kindClean) {
		v, _ := x.state.get(kindClean, k)
		var st cleanState
		if len(k) != 4 || cbor.Unmarshal(v, &st) != nil {
			x.in.problem(x.class, "", 0, "loss", "the state of a compacted partition does not decode")
			continue
		}
		id := PartitionID(binary.BigEndian.Uint32([]byte(k)))
		p := x.parts[id]
		if p == nil {
			p = &PartitionInspection{Partition: id, From: st.To, Next: st.To}
			x.parts[id] = p
		}
		for i := len(st.Files) - 1; i >= 0; i-- {
			f := &st.Files[i]
			p.From = min(p.From, f.Base)
			l := classLog{cleanDir: dir}
			x.cleanFile(l.cleanPath(id, f.Num), f, p)
		}
		p.Next = max(p.Next, st.To)
	}
}

func (x *inspector) cleanFile(path string, f *cleanFile, p *PartitionInspection) {
	name := "compact/" + filepath.Base(path)
	data, bad, err := durable.Salvage(durable.OS{}, path, max(f.Size, 0)+maxEntryBytes, &x.patience)
	x.unreadable(name, bad)
	if err != nil {
		x.in.problem(x.class, name, 0, "loss", "a file of a compacted partition cannot be read: %v", err)
		return
	}
	x.ci.Bytes += int64(len(data))
	sc, err := scanSegment(data, 1)
	if err != nil {
		x.in.problem(x.class, name, 0, "loss", "%v", err)
		return
	}
	if sc.next != f.Entries+1 || sc.end != f.Size {
		x.in.problem(x.class, name, sc.end, "loss", "%d entries in %d bytes, there were %d in %d", sc.next-1, sc.end, f.Entries, f.Size)
	}
	for i := range sc.entries {
		e := &sc.entries[i]
		if e.damaged {
			x.in.problem(x.class, name, e.pos, "loss", "%d damaged bytes in place of %d entries", e.end-e.pos, e.lost)
			continue
		}
		b, err := e.env.batch(&x.plain)
		if err == nil {
			err = b.VerifyThinned()
		}
		if err != nil {
			x.in.problem(x.class, name, e.pos, "loss", "a sound entry holds an unsound batch: %v", err)
			continue
		}
		x.ci.Entries++
		x.ci.Records += int64(b.Count())
		p.Records += int64(b.Count())
		p.Batches++
		p.Bytes += int64(len(b))
		if lo, hi := batchTimes(b); p.Batches == 1 {
			p.MinTime, p.MaxTime = lo, hi
		} else if p.MaxTime = max(p.MaxTime, hi); lo != unknownTime {
			p.MinTime = min(p.MinTime, lo)
		}
	}
}

// repairCompacted reads the files of compacted partitions, which declares what is
// damaged in them, and writes those anew in which something is. What goes is declared.
func (s *Store) repairCompacted() error {
	s.compactMu.Lock()
	defer s.compactMu.Unlock()
	var errs []error
	for _, l := range s.logs {
		for _, p := range l.partitions() {
			errs = append(errs, l.repairClean(p), l.tidyClean(p))
		}
		if err := l.do(l.c.ready); err == nil {
			errs = append(errs, l.sweepClean())
		}
	}
	return errors.Join(errs...)
}

func (l *classLog) repairClean(p *Partition) error {
	groups := p.cleanGroups()
	if len(groups) == 0 {
		return nil
	}
	c := &compactor{l: l, p: p, force: true, last: p.hw.Load() - 1, keys: newKeyTable(0, compactKeyBytes), d: record.NewDecompressor(0)}
	defer c.close()
	c.start = p.Start()
	end := groups[len(groups)-1][len(groups[len(groups)-1])-1].clean.Next
	if err := c.each(groups[0][0].clean.Base, end, func(*segment, *envelope, *ref) error { return nil }); err != nil {
		return err
	}
	for _, g := range groups {
		from, to := g[0].clean.Base, g[len(g)-1].clean.Next
		p.mu.RLock()
		hurt := false
		for _, h := range p.holes {
			hurt = hurt || h.from < to && h.to > from
		}
		p.mu.RUnlock()
		if hurt {
			if err := c.rewrite(g, from, to, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// logFile is the path below a class's directory of what Problem.File names.
func logFile(file string) string {
	if strings.HasPrefix(file, "compact/") || file == "twin" {
		return file
	}
	return filepath.Join("log", file)
}
