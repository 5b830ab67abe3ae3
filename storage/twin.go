package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"

	"tailrace/storage/internal/durable"
)

// twin is the second copy of the state whose loss would hide or move records: topics,
// starts, epochs, the ledger. It is a file of frames beside the log:
//
//	 0  4 magic "TRTW"
//	 4  1 version = 1
//	 5  1 kind: 1 all of the state, 2 operations since, 3 the log has lost state
//	 6  2 zero
//	 8  4 crc32c of [0:8) and [12:end)
//	12  8 commit number: the log up to it is durable, and the state is as of it
//	20  4 number of next offsets M
//	24  4 bytes of operations
//	28 12M partition id 4, next offset 8: everything below was acknowledged
//	      operations, as in a state entry of the log
//
// A commit with such state is followed by a frame, before its ack, without fsync: the
// log has it durably. Before a segment that told it can be left out by Open, and at
// Open and Close, the file is fsynced. The log is what counts; only where it is known
// to have lost entries, this copy and the operations that the log has since do.
type twin struct {
	fs   FS
	path string

	lost    bool   // the log has lost state since Open
	have    bool   // the file is whole up to its last frame, and may be appended to
	commit  uint64 // of its last frame
	size    int64
	base    int64  // size after it was written anew
	pending []byte // operations of the commit that is being published
	// first index of what is collected but not written, and of what is written but not
	// fsynced; 0 none
	collected, written uint64
	// whole tells what a file that is written anew has to say.
	whole func() (commit uint64, next map[PartitionID]int64, ops []byte)
	ends  func() map[PartitionID]int64 // how far each partition has come
}

const (
	twinHeader = 28
	twinAll    = 1
	twinOps    = 2
	twinLost   = 3
	twinSlack  = 64 << 10 // it is written anew at twice its size and so much
	maxTwin    = 256 << 20
)

// twinned tells which kinds have a second copy.
func twinned(k StateKind) bool {
	return k < KindSession && k != kindPad || k == KindAssign || k == KindLedger
}

// twinOpsOf are the operations of a payload that the second copy keeps.
func twinOpsOf(dst, payload []byte) []byte {
	for rest := payload; len(rest) > 0; {
		kind, _, _, _, next, err := nextOp(rest)
		if err != nil {
			return dst
		}
		if twinned(kind) {
			dst = append(dst, rest[:len(rest)-len(next)]...)
		}
		rest = next
	}
	return dst
}

func appendTwin(dst []byte, kind byte, commit uint64, next map[PartitionID]int64, ops []byte) []byte {
	at := len(dst)
	dst = append(dst, 'T', 'R', 'T', 'W', formatVersion, kind, 0, 0, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint64(dst, commit)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(next)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(ops)))
	for _, id := range slices.Sorted(maps.Keys(next)) {
		dst = binary.BigEndian.AppendUint32(dst, uint32(id))
		dst = binary.BigEndian.AppendUint64(dst, uint64(next[id]))
	}
	dst = append(dst, ops...)
	b := dst[at:]
	binary.BigEndian.PutUint32(b[8:], envelopeSum(b))
	return dst
}

// twinState is what a second copy says.
type twinState struct {
	state  *stateMap
	commit uint64
	next   map[PartitionID]int64
	lost   bool // the log has lost state, and what this says counts
	whole  bool // nothing but frames is in the file
	size   int64
}

// readTwin reads the frames up to the first that is not whole, or that the disk does not
// give; nil when there is none.
func (l *classLog) readTwin(r *recovered) (*twinState, error) {
	b, bad, err := l.salvage(l.twin.path, maxTwin)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 { // it is written anew; the log has all of it
		r.report(l, Repair{File: filepath.Base(l.twin.path), What: "unreadable", Bytes: badBytes(bad),
			Detail: "the second copy of the state; it is written again from the log" + kept(l.quarantine(l.twin.path, "unreadable", false))})
	}
	return parseTwin(b)
}

func parseTwin(b []byte) (*twinState, error) {
	t := &twinState{state: newStateMap(nil), next: make(map[PartitionID]int64), size: int64(len(b))}
	began := false
	for len(b) >= twinHeader && string(b[:4]) == "TRTW" {
		m, p := uint64(binary.BigEndian.Uint32(b[20:])), uint64(binary.BigEndian.Uint32(b[24:]))
		n := twinHeader + 12*m + p
		if n > uint64(len(b)) || crc32.Update(crc32.Checksum(b[:8], castagnoli), castagnoli, b[12:n]) != binary.BigEndian.Uint32(b[8:]) {
			break
		}
		if b[4] != formatVersion || b[5] < twinAll || b[5] > twinLost {
			return nil, fmt.Errorf("%w: second copy of the state, version %d kind %d: use a newer program", errVersion, b[4], b[5])
		}
		if !began && b[5] != twinAll {
			break
		}
		began = true
		t.commit = binary.BigEndian.Uint64(b[12:])
		t.lost = t.lost || b[5] == twinLost
		if b[5] == twinAll {
			t.lost = false
			t.state, t.next = newStateMap(nil), make(map[PartitionID]int64)
		}
		for q := b[twinHeader:][:12*m]; len(q) > 0; q = q[12:] {
			t.next[PartitionID(binary.BigEndian.Uint32(q))] = int64(binary.BigEndian.Uint64(q[4:]))
		}
		if err := t.state.applyAll(0, b[twinHeader+12*m:n]); err != nil {
			break
		}
		b = b[n:]
	}
	if !began {
		return nil, nil
	}
	t.whole = len(b) == 0
	return t, nil
}

// collect takes what a payload that was made durable holds of the state, at the index.
func (t *twin) collect(index uint64, payload []byte) {
	n := len(t.pending)
	if t.pending = twinOpsOf(t.pending, payload); len(t.pending) > n && t.collected == 0 {
		t.collected = index
	}
}

// note writes what was collected of a commit, with the next offsets of the partitions
// that the commit has moved.
func (t *twin) note(commit uint64, touched []*Partition) error {
	if len(t.pending) == 0 {
		return nil
	}
	next := make(map[PartitionID]int64, len(touched))
	for _, p := range touched {
		next[p.id] = p.hw.Load()
	}
	return t.append(commit, next, t.pending)
}

func (t *twin) append(commit uint64, next map[PartitionID]int64, ops []byte) error {
	if !t.have || t.size > 2*t.base+twinSlack {
		return t.rewrite()
	}
	b := appendTwin(nil, twinOps, commit, next, ops)
	f, err := t.fs.OpenFile(t.path, os.O_WRONLY|os.O_APPEND, filePerm)
	if err == nil {
		_, err = f.Write(b)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if t.written == 0 {
		t.written = t.collected
	}
	if err != nil {
		t.have = false // what lies behind a torn frame would not be read
		return &DiskError{"write", t.path, err}
	}
	t.size += int64(len(b))
	t.commit, t.pending, t.collected = commit, t.pending[:0], 0
	return nil
}

// rewrite writes all of it anew, durably.
func (t *twin) rewrite() error {
	commit, next, ops := t.whole()
	b := appendTwin(nil, twinAll, commit, next, ops)
	if t.lost {
		b = appendTwin(b, twinLost, commit, nil, nil)
	}
	if err := durable.WriteFile(t.fs, t.path, b, filePerm); err != nil {
		t.have = false
		return &DiskError{"write", t.path, err}
	}
	t.have, t.commit, t.size, t.base = true, commit, int64(len(b)), int64(len(b))
	t.pending, t.collected, t.written = t.pending[:0], 0, 0
	return nil
}

// lose notes durably that the log has lost state which this copy has.
func (t *twin) lose() error {
	t.lost = true
	return t.rewrite()
}

// sync makes durable what was written, and tells from which index on the log alone has
// it; 0 when the copy has all.
func (t *twin) sync() (from uint64, err error) {
	if t.written > 0 || !t.have {
		switch {
		case !t.have:
			err = t.rewrite()
		default:
			err = syncFile(t.fs, t.path)
		}
		if err != nil {
			t.have = false
			if from = 1; t.written > 0 {
				from = t.written
			}
			return from, err
		}
		t.written = 0
	}
	return t.collected, nil
}

func syncFile(fsys FS, path string) error {
	f, err := fsys.OpenFile(path, os.O_RDWR, filePerm)
	if err != nil {
		return &DiskError{"open", path, err}
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return &DiskError{"fsync", path, err}
	}
	return nil
}

// mark notes durably that the log is whole up to the last commit, and how far each
// partition has come: what is missing of it at the next Open is lost, not torn.
func (t *twin) mark(commit uint64) error {
	if t.have && t.commit == commit && t.written == 0 {
		return nil
	}
	if !t.have || t.size > 2*t.base+twinSlack {
		return t.rewrite()
	}
	if err := t.append(commit, t.ends(), t.pending); err != nil {
		return err
	}
	t.written = 1
	_, err := t.sync()
	return err
}

// loseState is called before recovery changes what has lost entries: from now on the
// second copy counts, also when this Open does not end.
func (l *classLog) loseState(r *recovered) error {
	if r.twin == nil || r.stateLost {
		return nil
	}
	r.stateLost = true
	if r.twin.lost {
		return nil
	}
	ops, _ := r.twin.state.forward(nil, math.MaxUint64, math.MaxInt)
	b := appendTwin(nil, twinAll, r.twin.commit, r.twin.next, ops)
	b = appendTwin(b, twinLost, r.twin.commit, nil, nil)
	if err := durable.WriteFile(l.s.cfg.FS, l.twin.path, b, filePerm); err != nil {
		return &DiskError{"write", l.twin.path, err}
	}
	return nil
}

// restoreState compares the replayed state with the second copy. Where the log is known
// to have lost entries, the copy and what the log told since count: r.restore are the
// operations that make it so, in the log as well.
func (l *classLog) restoreState(r *recovered) {
	tw := r.twin
	if tw == nil {
		return
	}
	if tw.commit > r.commit { // it was written when the log had that
		r.stateLost, r.cut = true, true
		r.report(l, Repair{File: filepath.Base(r.segs[len(r.segs)-1].path), What: "tail-lost",
			Detail: fmt.Sprintf("the log was whole up to commit %d and ends with %d: what is known to be missing is declared", tw.commit, r.commit)})
	}
	if err := tw.state.applyAll(0, r.recent); err != nil {
		l.lg.Error("state does not parse", "err", err)
		return
	}
	restore := l.state.differences(tw.state)
	if !r.stateLost && !tw.lost && tw.whole && setsAny(restore) { // the first file is gone, which leaves no hole
		r.stateLost, r.cut = true, true
		r.report(l, Repair{File: filepath.Base(r.segs[0].path), What: "missing", Detail: "the log begins here, and state that was told before is nowhere in it"})
	}
	if !r.stateLost && !tw.lost {
		l.twin.have = tw.whole && len(r.recent) == 0 && len(restore) == 0
		l.twin.commit, l.twin.size, l.twin.base = tw.commit, tw.size, tw.size
		return
	}
	if len(restore) == 0 {
		return
	}
	l.state.mu.Lock()
	err := l.state.applyAll(r.segs[len(r.segs)-1].last+1, restore)
	l.state.mu.Unlock()
	if err != nil {
		l.lg.Error("state does not parse", "err", err)
		return
	}
	r.restore = restore
	r.report(l, Repair{File: filepath.Base(l.twin.path), What: "state-restored", Detail: "topics, starts, epochs or rows of the ledger that the log has lost"})
}

// differences are the operations that make what m holds of twinned kinds what o holds.
func (m *stateMap) differences(o *stateMap) (ops []byte) {
	for i := range m.kinds {
		kind := StateKind(i)
		if !twinned(kind) {
			continue
		}
		for _, k := range o.keys(kind) {
			want, _ := o.get(kind, k)
			if have, ok := m.get(kind, k); !ok || !bytes.Equal(have, want) {
				ops = appendOp(ops, kind, opSet, k, want)
			}
		}
		for _, k := range m.keys(kind) {
			if _, ok := o.get(kind, k); !ok {
				ops = appendOp(ops, kind, opDelete, k, nil)
			}
		}
	}
	return ops
}

// setsAny tells whether operations set a key.
func setsAny(ops []byte) bool {
	for len(ops) > 0 {
		_, op, _, _, rest, err := nextOp(ops)
		if err != nil || op == opSet {
			return err == nil
		}
		ops = rest
	}
	return false
}

// twinWhole is what the second copy says when it is written anew.
func (l *classLog) twinWhole() (commit uint64, next map[PartitionID]int64, ops []byte) {
	for i := range l.state.kinds {
		if kind := StateKind(i); twinned(kind) {
			for _, k := range l.state.keys(kind) {
				if v, ok := l.state.get(kind, k); ok {
					ops = appendOp(ops, kind, opSet, k, v)
				}
			}
		}
	}
	return l.c.durable, l.ends(), ops
}

func (l *classLog) ends() map[PartitionID]int64 {
	next := make(map[PartitionID]int64)
	for _, p := range l.partitions() {
		if n := p.hw.Load(); n > 0 {
			next[p.id] = n
		}
	}
	return next
}

// passTwin notes the end of the log without a flush, once for each segment: the kernel
// writes it within half a minute, and then what a later start misses below it is lost, and
// not torn.
func (l *classLog) passTwin() {
	if !l.twin.have {
		return // written anew, with a flush, at the next occasion
	}
	if err := l.twin.append(l.c.durable, l.ends(), l.twin.pending); err != nil {
		l.lg.Warn("write the second copy of the state", "err", err)
	}
}

// markTwin is twin.mark with the last durable commit. That it fails costs nothing now.
func (l *classLog) markTwin() {
	if err := l.twin.mark(l.c.durable); err != nil {
		l.lg.Warn("write the second copy of the state", "err", err)
	}
}
