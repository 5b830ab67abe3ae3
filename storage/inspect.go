package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"tailrace/storage/internal/durable"
)

// Inspection describes a store's directory as its bytes stand.
type Inspection struct {
	Dir      string            `json:"dir"`
	Identity map[string]string `json:"identity"` // lines of the identity file
	Classes  []ClassInspection `json:"classes"`
	Problems []Problem         `json:"problems"`
}

// ClassInspection describes one commit log.
type ClassInspection struct {
	Class       string                `json:"class"`
	Segments    int                   `json:"segments"`
	Bytes       int64                 `json:"bytes"`
	Entries     int64                 `json:"entries"`
	Commits     int64                 `json:"commits"`
	Records     int64                 `json:"records"`
	FirstIndex  uint64                `json:"first_index"`
	NextIndex   uint64                `json:"next_index"`
	Epoch       int32                 `json:"epoch"` // highest number in the entries
	State       map[string]int        `json:"state"` // live keys, by kind
	Quarantined []string              `json:"quarantined,omitempty"`
	Partitions  []PartitionInspection `json:"partitions"`
}

// PartitionInspection is what the log holds of a partition, logically deleted
// records included.
type PartitionInspection struct {
	Partition PartitionID `json:"partition_id"`
	Topic     string      `json:"topic"` // "" when its topic is gone
	Index     int         `json:"partition"`
	From      int64       `json:"from"` // first offset present
	Start     int64       `json:"start"`
	Next      int64       `json:"next"`
	Records   int64       `json:"records"`
	Batches   int64       `json:"batches"`
	Bytes     int64       `json:"bytes"`
	MinTime   int64       `json:"min_time"` // ms since 1970
	MaxTime   int64       `json:"max_time"`
	// Missing was acknowledged, is not there and not declared lost: the next Open declares it.
	Missing []OffsetRange `json:"missing,omitempty"`
}

// OffsetRange is half-open.
type OffsetRange struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Problem is one thing that is not as it should be. Severity "note" is what the
// next Open repairs as a matter of course (the torn tail of a crash); "loss" is
// damage to acknowledged data.
type Problem struct {
	Class    string `json:"class"`
	File     string `json:"file"`
	Offset   int64  `json:"offset"` // in the file
	Severity string `json:"severity"`
	What     string `json:"what"`
	Settled  bool   `json:"settled,omitempty"` // an earlier start has dealt with it
}

// Inspect reads a store's directory, checks every byte of it, and changes
// nothing: not even the torn tail that Open would cut. It takes no lock, so a
// store in use may show a torn tail that is only being written. progress, which
// may be nil, is told the bytes done and in all.
//
// Its error means that the directory could not be read, or is of a later format;
// what is wrong with the data stands in Problems.
func Inspect(dir string, progress func(done, total int64)) (*Inspection, error) {
	in := &Inspection{Dir: dir, Identity: map[string]string{}, Problems: []Problem{}}
	b, _, err := durable.Salvage(durable.OS{}, filepath.Join(dir, "IDENTITY"), 4096, &durable.Patience{Left: openRereads})
	if _, _, perr := parseIdentity(b); err == nil && perr != nil {
		if second, serr := os.ReadFile(filepath.Join(dir, "IDENTITY"+secondIdentity)); serr == nil {
			b = second
			in.problem("", "", 0, "note", "IDENTITY: %v: the next start writes it again from its copy", perr)
		}
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is not a store's directory: it has no file %q", dir, "IDENTITY")
		}
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			in.Identity[k] = v
		}
	}
	ents, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var total, done int64
	type class struct {
		name string
		segs []string
	}
	var classes []class
	for _, e := range ents {
		segDir := filepath.Join(dir, e.Name(), "log")
		files, err := os.ReadDir(segDir)
		if err != nil {
			continue // not a class
		}
		c := class{name: e.Name()}
		for _, f := range files {
			if _, ok := segmentFirst(f.Name()); ok {
				c.segs = append(c.segs, filepath.Join(segDir, f.Name()))
				if fi, err := f.Info(); err == nil {
					total += fi.Size()
				}
			} else {
				in.problem(e.Name(), f.Name(), 0, "note", "a file that is not a segment: the rest of a truncation that a crash ended")
			}
		}
		slices.Sort(c.segs) // twenty digits: by first index
		classes = append(classes, c)
	}
	for _, c := range classes {
		ci := &inspector{in: in, class: c.name, state: newStateMap(nil), parts: map[PartitionID]*PartitionInspection{}, ends: map[PartitionID]int64{}, patience: durable.Patience{Left: openRereads}}
		if err := ci.readTwin(filepath.Join(dir, c.name, "twin")); err != nil {
			return nil, err
		}
		for i, path := range c.segs {
			n, err := ci.segment(path, i == len(c.segs)-1)
			if err != nil {
				return nil, err
			}
			if done += n; progress != nil {
				progress(done, total)
			}
		}
		ci.second()
		ci.compacted(filepath.Join(dir, c.name, "compact"))
		ci.finish(filepath.Join(dir, c.name, "quarantine"))
	}
	return in, nil
}

func (in *Inspection) problem(class, file string, at int64, severity, format string, args ...any) {
	in.Problems = append(in.Problems, Problem{Class: class, File: file, Offset: at, Severity: severity, What: fmt.Sprintf(format, args...)})
}

// Lossy tells whether acknowledged data is damaged.
func (in *Inspection) Lossy() bool {
	return slices.ContainsFunc(in.Problems, func(p Problem) bool { return p.Severity == "loss" })
}

// inspector walks one class.
type inspector struct {
	in    *Inspection
	class string
	ci    ClassInspection
	state *stateMap
	parts map[PartitionID]*PartitionInspection
	next  uint64
	// damaged is how many damage entries came last, one after the other.
	damaged int

	patience durable.Patience
	plain    []byte // a batch that was packed

	ends   map[PartitionID]int64 // behind each partition's last batch in the log
	gaps   []lostRange           // between its batches, and before the first
	commit uint64                // the highest
	twin   *twinState            // the second copy of the state
	recent []byte                // operations since
}

func (x *inspector) segment(path string, tail bool) (int64, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	name := filepath.Base(path)
	if fi.Size() > maxSegmentBytes+2*maxEntryBytes {
		x.in.problem(x.class, name, 0, "loss", "the segment has %d bytes, more than any can have", fi.Size())
		return fi.Size(), nil
	}
	data, bad, err := durable.Salvage(durable.OS{}, path, fi.Size(), &x.patience)
	if err != nil {
		return 0, err
	}
	x.unreadable(name, bad)
	first, _ := segmentFirst(name)
	if x.ci.Segments == 0 {
		x.ci.FirstIndex = first
	} else if first != x.next {
		x.in.problem(x.class, name, 0, "loss", "the segment begins at index %d, the one before ends at %d: a segment is missing or cut", first, x.next)
	}
	sc, err := scanSegment(data, first)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	x.damaged = 0
	x.ci.Segments++
	x.ci.Bytes += int64(len(data))
	sure := uint64(0)
	if x.twin != nil {
		sure = x.twin.commit
	}
	complete := lastComplete(sc, sure)
	for i := range sc.entries {
		x.entry(name, &sc.entries[i])
	}
	x.next = sc.next
	switch {
	case !tail && sc.tornAt < sc.size:
		x.in.problem(x.class, name, sc.tornAt, "loss", "%d bytes at the end hold no valid entry, and segments follow", sc.size-sc.tornAt)
	case tail && sc.tornAt < sc.size:
		x.in.problem(x.class, name, sc.tornAt, "note", "%d bytes of a torn tail, never acknowledged: the next start cuts them", sc.size-sc.tornAt)
	case tail && len(sc.entries) > 0 && (!complete.ok || complete.end < sc.end):
		x.in.problem(x.class, name, complete.end, "note", "the last commit is not whole, never acknowledged: the next start cuts it")
	}
	return int64(len(data)), nil
}

// unreadable notes what the disk refused to read of a file.
func (x *inspector) unreadable(name string, bad []durable.Range) {
	for _, r := range bad {
		x.in.problem(x.class, name, r.From, "loss", "the disk refuses to read %d bytes: replace it soon", r.To-r.From)
	}
}

func (x *inspector) readTwin(path string) error {
	b, bad, err := durable.Salvage(durable.OS{}, path, maxTwin, &x.patience)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range bad {
		x.in.problem(x.class, "twin", r.From, "note", "the disk refuses to read %d bytes of the second copy of the state: the next start writes it again", r.To-r.From)
	}
	x.twin, err = parseTwin(b)
	return err
}

func (x *inspector) entry(file string, e *scanned) {
	if e.damaged {
		x.damaged = 0
		what := "the length before an entry is wrong"
		if e.lost > 0 {
			what = fmt.Sprintf("%d damaged bytes in place of %d entries", e.end-e.pos, e.lost)
		}
		x.in.problem(x.class, file, e.pos, "loss", "%s", what)
		return
	}
	if e.env.kind != entryDamage {
		x.damaged = 0
	}
	x.ci.Entries++
	x.ci.Epoch = max(x.ci.Epoch, e.env.epoch)
	x.commit = max(x.commit, e.env.commit)
	if e.env.flags&flagLast != 0 {
		x.ci.Commits++
	}
	switch e.env.kind {
	case entryState:
		ops, err := e.env.ops(&x.plain)
		if err == nil {
			err = x.state.applyAll(e.env.index, ops)
		}
		if err != nil {
			x.in.problem(x.class, file, e.pos, "loss", "%v", err)
		}
		if x.twin != nil && e.env.commit > x.twin.commit {
			x.recent = twinOpsOf(x.recent, ops)
		}
	case entryDamage:
		const what = "damage that an earlier start cut out, declared and set aside"
		if x.damaged++; x.damaged > 1 { // one after the other, as of a whole file
			x.in.Problems[len(x.in.Problems)-1].What = fmt.Sprintf(what+" (%d entries)", x.damaged)
			return
		}
		x.in.problem(x.class, file, e.pos, "note", what)
		x.in.Problems[len(x.in.Problems)-1].Settled = true
	case entryData:
		x.data(file, e)
	}
}

// second compares with the second copy of the state: it tells whether the log has lost
// its end, and has what the log has lost.
func (x *inspector) second() {
	tw := x.twin
	if tw == nil {
		return
	}
	if tw.commit > x.commit {
		x.in.problem(x.class, "", 0, "loss", "the log was whole up to commit %d and ends with %d", tw.commit, x.commit)
	}
	lossy := slices.ContainsFunc(x.in.Problems, func(p Problem) bool { return p.Class == x.class && p.Severity == "loss" })
	if tw.state.applyAll(0, x.recent) != nil {
		return
	}
	ops := x.state.differences(tw.state)
	switch {
	case len(ops) == 0:
		return
	case !lossy && !tw.lost && tw.whole && setsAny(ops): // the first file is gone, which leaves no hole
		x.in.problem(x.class, "", 0, "loss", "the log begins at index %d, and state that was told before is nowhere in it: the next start takes it from its second copy", x.ci.FirstIndex)
		_ = x.state.applyAll(x.next, ops)
	case lossy || tw.lost:
		x.in.problem(x.class, "", 0, "note", "the log has lost state that its second copy has: the next start writes it again")
		_ = x.state.applyAll(x.next, ops)
	}
}

func (x *inspector) data(file string, e *scanned) {
	b, err := e.env.batch(&x.plain)
	if err == nil {
		err = b.Verify()
	}
	if err != nil {
		x.in.problem(x.class, file, e.pos, "loss", "a sound entry holds an unsound batch: %v", err)
		return
	}
	lo, hi := batchTimes(b)
	p := x.parts[e.env.partition]
	if at, ok := x.ends[e.env.partition]; at < b.BaseOffset() {
		x.gaps = append(x.gaps, lostRange{e.env.partition, at, b.BaseOffset()})
	} else if ok && b.BaseOffset() < at {
		x.in.problem(x.class, file, e.pos, "loss", "%v: offset %d again, %d was next", e.env.partition, b.BaseOffset(), at)
	}
	x.ends[e.env.partition] = b.NextOffset()
	if p == nil {
		p = &PartitionInspection{Partition: e.env.partition, From: b.BaseOffset(), Next: b.BaseOffset(), MinTime: lo, MaxTime: hi}
		x.parts[e.env.partition] = p
	}
	p.Next = b.NextOffset()
	p.Records += int64(b.Count())
	p.Batches++
	p.Bytes += int64(len(b))
	if lo > -1<<62 { // known
		p.MinTime = min(p.MinTime, lo)
	}
	p.MaxTime = max(p.MaxTime, hi)
	x.ci.Records += int64(b.Count())
}

func (x *inspector) finish(quarantine string) {
	x.ci.Class, x.ci.NextIndex = x.class, x.next
	x.ci.State = map[string]int{}
	for kind, keys := range x.state.kinds {
		if len(keys) > 0 {
			x.ci.State[StateKind(kind).String()] = len(keys)
		}
	}
	for _, name := range x.state.keys(kindTopic) {
		v, _ := x.state.get(kindTopic, name)
		var t topicState
		if cbor.Unmarshal(v, &t) != nil {
			x.in.problem(x.class, "", 0, "loss", "the state of topic %q does not decode", name)
			continue
		}
		for i, id := range t.Partitions {
			if p := x.parts[id]; p != nil {
				p.Topic, p.Index = name, i
			} else {
				x.parts[id] = &PartitionInspection{Partition: id, Topic: name, Index: i}
			}
		}
	}
	for id, p := range x.parts {
		p.Start = p.From
		if v, ok := x.state.get(kindStart, string((&Partition{id: id}).startKey())); ok && len(v) == 8 {
			p.Start = int64(binary.BigEndian.Uint64(v))
			p.Next = max(p.Next, p.Start)
		}
		x.ci.Partitions = append(x.ci.Partitions, *p)
	}
	slices.SortFunc(x.ci.Partitions, func(a, b PartitionInspection) int {
		if c := strings.Compare(a.Topic, b.Topic); c != 0 {
			return c
		}
		return a.Index - b.Index
	})
	x.missing()
	if files, err := os.ReadDir(quarantine); err == nil {
		for _, f := range files {
			x.ci.Quarantined = append(x.ci.Quarantined, f.Name())
		}
	}
	x.in.Classes = append(x.in.Classes, x.ci)
}
