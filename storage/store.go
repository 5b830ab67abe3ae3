package storage

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"

	"tailrace/storage/internal/durable"
)

// Store is an open store. See the package comment.
type Store struct {
	cfg        Config
	lock       io.Closer
	keepAll    bool         // the quarantine has no limit, and the caller has made the copies
	logs       []*classLog  // in the order of Config.Classes
	idMu       sync.RWMutex // guards identity and epochs once the store is open
	identity   Identity
	epoch      atomic.Int32 // identity.Epoch.Number
	epochs     []Epoch      // all, the oldest first
	originTail []byte       // the header "tr" as it ends every record tail, offset zero

	adminMu       sync.Mutex // one change of topics at a time; guards nextPartition
	nextPartition PartitionID

	compactMu sync.Mutex // one compaction at a time

	topicsMu   sync.RWMutex
	topics     map[string]*Topic
	partitions map[PartitionID]*Partition

	subs      subscribers
	closeOnce sync.Once
	closing   chan struct{} // closed when Close begins
	ticker    sync.WaitGroup
	closeErr  error
}

// Open opens the store in a directory, or creates one: it repairs what a power
// cut or rot has left, replays the state, and raises the epoch if anything was
// cut (Identity tells). When it returns, everything that was acknowledged is
// there or declared in Losses.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, dirPerm); err != nil {
		return nil, &DiskError{"create", cfg.Dir, err}
	}
	lock, err := cfg.FS.Lock(filepath.Join(cfg.Dir, "LOCK"))
	if err != nil {
		return nil, &DiskError{"lock", cfg.Dir, err}
	}
	return open(cfg, lock, false)
}

// open opens the store under its lock, which it closes when it fails.
func open(cfg Config, lock io.Closer, keepAll bool) (*Store, error) {
	cfg = cfg.withDefaults()
	s := &Store{
		cfg: cfg, lock: lock, keepAll: keepAll,
		topics: make(map[string]*Topic), partitions: make(map[PartitionID]*Partition),
		closing: make(chan struct{}),
	}
	if err := s.open(); err != nil {
		for _, l := range s.logs {
			l.abandon()
		}
		lock.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) open() error {
	if err := s.loadIdentity(); err != nil {
		return err
	}
	if err := s.checkClasses(); err != nil {
		return err
	}
	var recs []*recovered
	cut := false
	for _, cc := range s.cfg.Classes {
		l := newClassLog(s, cc)
		s.logs = append(s.logs, l)
		l.reserve.releaseBelow(2 * l.reserve.size)
		r, err := l.recover()
		if err != nil {
			return fmt.Errorf("recover class %q: %w", cc.Name, err)
		}
		recs = append(recs, r)
		s.identity.Recovered = append(s.identity.Recovered, r.repairs...)
		cut = cut || r.cut
	}
	if err := s.cfg.FS.SyncDir(s.cfg.Dir); err != nil {
		return &DiskError{"fsync directory", s.cfg.Dir, err}
	}
	if err := s.loadEpochs(); err != nil {
		return err
	}
	lost := make([][]byte, len(s.logs))
	for i, l := range s.logs {
		if err := s.loadTopics(l, recs[i]); err != nil {
			return err
		}
		lost[i] = l.attach(recs[i])
		l.setSegments(recs[i].segs)
		tail := l.tailSegment()
		l.c.commit, l.c.durable = recs[i].commit, recs[i].commit
		if tw := recs[i].twin; tw != nil { // no number twice
			l.c.commit = max(l.c.commit, tw.commit)
		}
		if err := l.openWAL(tail.last+1, tail); err != nil {
			return err
		}
		go l.c.run()
		l.running = true
	}
	if err := s.settle(recs, lost, cut || len(s.epochs) == 0 || s.cfg.NewEpoch); err != nil {
		return err
	}
	for _, l := range s.logs {
		if front := l.frontIndex(); l.state.floor(front) < front {
			if err := l.do(func() error { return l.c.forward(front - 1) }); err != nil {
				return fmt.Errorf("write rescued state: %w", err)
			}
		}
	}
	for _, l := range s.logs {
		if err := l.do(func() error { l.reserve.fill(l.c.mayFillReserve); l.markTwin(); return nil }); err != nil {
			return err
		}
	}
	if s.cfg.ScrubInterval > 0 {
		s.ticker.Go(s.scrubLoop)
	}
	if s.cfg.RetentionInterval > 0 {
		s.ticker.Go(s.retainLoop)
		s.ticker.Go(s.compactLoop)
	}
	return nil
}

func (s *Store) retainLoop() {
	t := time.NewTicker(s.cfg.RetentionInterval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if err := s.Retain(); err != nil && !errors.Is(err, ErrClosed) {
				s.cfg.Logger.Warn("retention", "err", err)
			}
		case <-s.closing:
			return
		}
	}
}

// Close commits what was submitted, ends the committers and closes the files. It
// is safe to call it again.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		for _, l := range s.logs {
			l.mu.Lock()
			l.closed = true
			l.room.Broadcast()
			l.mu.Unlock()
			l.wakeup()
		}
		s.ticker.Wait()
		s.compactMu.Lock() // a Compact that is under way ends
		defer s.compactMu.Unlock()
		var errs []error
		for _, l := range s.logs {
			<-l.done
			if l.c.broken == nil {
				l.markTwin()
			}
			errs = append(errs, l.c.close())
			l.files.closeAll()
		}
		errs = append(errs, s.lock.Close())
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

// close closes what the committer owned, after it has ended. Everything in it
// is durable already.
func (c *committer) close() error {
	if c.tail != nil {
		c.tail.Close()
	}
	if c.wal == nil {
		return c.broken
	}
	if err := closeWAL(c.wal); err != nil {
		return &DiskError{"close", c.l.segDir, err}
	}
	return nil
}

// abandon is Close for a log of a store that did not open.
func (l *classLog) abandon() {
	if l.running {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.wakeup()
		<-l.done
	}
	if l.c.wal != nil {
		l.c.close()
	}
	l.files.closeAll()
}

// Identity tells which store, epoch and boot this is, and what Open repaired.
func (s *Store) Identity() Identity {
	s.idMu.RLock()
	defer s.idMu.RUnlock()
	id := s.identity
	id.Recovered = slices.Clone(id.Recovered)
	return id
}

// Epochs are all epochs of the store, the oldest first.
func (s *Store) Epochs() []Epoch {
	s.idMu.RLock()
	defer s.idMu.RUnlock()
	return slices.Clone(s.epochs)
}

// EpochNumber is that of the current epoch.
func (s *Store) EpochNumber() int32 { return s.epochNumber() }

// RaiseEpoch begins a new epoch with a number of at least atLeast while the store
// runs: for a hub that learns that a later state of its store was lost, so that
// consumers can tell offsets given out again from those of the lost state. A store
// with origin headers cannot do it; it begins epochs when it opens.
func (s *Store) RaiseEpoch(atLeast int32) error {
	if s.cfg.OriginHeaders {
		return errors.New("storage: a store with origin headers begins a new epoch only when it opens")
	}
	l := s.logs[0]
	// On the committer's goroutine, so that no batch of this class falls between.
	return l.do(func() error {
		e, ops, err := s.nextEpoch(atLeast)
		if err == nil {
			err = l.c.commitOps(ops)
		}
		if err != nil {
			return fmt.Errorf("begin epoch %d: %w", e.Number, err)
		}
		s.idMu.Lock()
		defer s.idMu.Unlock()
		s.epochs = append(s.epochs, e)
		s.identity.Epoch = e
		s.epoch.Store(e.Number)
		return nil
	})
}

// Subscribe sends on ch, without blocking, whenever the high watermark of any
// partition moves, until cancel is called. Give ch a capacity of 1.
func (s *Store) Subscribe(ch chan<- struct{}) (cancel func()) { return s.subs.add(ch) }

func (s *Store) notify() { s.subs.notify() }

func (s *Store) epochNumber() int32 { return s.epoch.Load() }

// log finds a class, nil when there is none.
func (s *Store) log(class string) *classLog {
	if class == "" {
		return s.logs[0]
	}
	for _, l := range s.logs {
		if l.cfg.Name == class {
			return l
		}
	}
	return nil
}

// partitions are those of one class.
func (l *classLog) partitions() []*Partition {
	l.s.topicsMu.RLock()
	defer l.s.topicsMu.RUnlock()
	ps := make([]*Partition, 0, len(l.s.partitions))
	for _, p := range l.s.partitions {
		if p.log == l {
			ps = append(ps, p)
		}
	}
	return ps
}

// commitWait is Commit for the store's own appends, which nothing may interrupt, and
// which do not wait for CommitInterval: they come one after the other (adminMu), and a
// new topic's records wait for each.
func (s *Store) commitWait(a *Append) error {
	a.now = true
	ch := make(chan error, 1)
	s.Submit(a, func(_ *Append, err error) { ch <- err })
	return <-ch
}

// checkClasses refuses a directory that has a class which is not configured: its
// records would be out of sight.
func (s *Store) checkClasses() error {
	ents, err := s.cfg.FS.ReadDir(s.cfg.Dir)
	if err != nil {
		return &DiskError{"list", s.cfg.Dir, err}
	}
	for _, e := range ents {
		if !e.IsDir() || slices.ContainsFunc(s.cfg.Classes, func(c ClassConfig) bool { return c.Name == e.Name() }) {
			continue
		}
		if _, err := s.cfg.FS.Stat(filepath.Join(s.cfg.Dir, e.Name(), "log")); err == nil {
			return fmt.Errorf("storage: %s holds the storage class %q, which is not configured: add it, or move the directory away", s.cfg.Dir, e.Name())
		}
	}
	return nil
}

// The identity file: one "key value" a line, then the CRC32C of the lines before.
func (s *Store) loadIdentity() error {
	if _, err := io.ReadFull(s.cfg.Rand, s.identity.BootID[:]); err != nil {
		return fmt.Errorf("storage: random id: %w", err)
	}
	path := filepath.Join(s.cfg.Dir, "IDENTITY")
	b, _, err := durable.Salvage(s.cfg.FS, path, 4096, &durable.Patience{Left: openRereads})
	if errors.Is(err, fs.ErrNotExist) {
		return s.createIdentity(path)
	}
	if err != nil {
		return &DiskError{"read", path, err}
	}
	node, id, err := parseIdentity(b)
	second, rerr := durable.ReadFile(s.cfg.FS, path+secondIdentity, 4096)
	if err != nil && !errors.Is(err, errVersion) && rerr == nil {
		var rest error
		if node, id, rest = parseIdentity(second); rest == nil {
			s.cfg.Logger.Warn("the identity file is damaged; written again from its copy", "file", path, "err", err)
			s.identity.Recovered = append(s.identity.Recovered, Repair{File: "IDENTITY", What: "identity-restored", Detail: err.Error()})
			if err = durable.WriteFile(s.cfg.FS, path, second, filePerm); err != nil {
				return &DiskError{"write", path, err}
			}
			b = second
		}
	}
	if err != nil {
		return fmt.Errorf("storage: %s: %w, and there is no sound copy %s: restore it from a backup, or remove it to give the store a new id", path, err, "IDENTITY"+secondIdentity)
	}
	if !bytes.Equal(b, second) {
		if err := durable.WriteFile(s.cfg.FS, path+secondIdentity, b, filePerm); err != nil {
			s.cfg.Logger.Warn("write the copy of the identity", "err", err)
		}
	}
	if s.cfg.NodeID != "" && node != "" && node != s.cfg.NodeID {
		return fmt.Errorf("storage: %s belongs to %q, this is %q: use another directory, or the other node id", s.cfg.Dir, node, s.cfg.NodeID)
	}
	s.identity.NodeID, s.identity.StoreID = node, id
	if node == "" && s.cfg.NodeID != "" {
		s.identity.NodeID = s.cfg.NodeID
		return s.writeIdentity(path)
	}
	return nil
}

// secondIdentity is the end of the name of the copy that counts when IDENTITY is damaged.
const secondIdentity = ".copy"

func (s *Store) createIdentity(path string) error {
	s.identity.NodeID = s.cfg.NodeID
	if _, err := io.ReadFull(s.cfg.Rand, s.identity.StoreID[:]); err != nil {
		return fmt.Errorf("storage: random id: %w", err)
	}
	return s.writeIdentity(path)
}

func (s *Store) writeIdentity(path string) error {
	text := fmt.Sprintf("tailrace-store %d\nnode %s\nstore %s\n", formatVersion, s.identity.NodeID, hexID(s.identity.StoreID))
	text += fmt.Sprintf("crc32c %08x\n", checksumString(text))
	for _, name := range []string{path, path + secondIdentity} {
		if err := durable.WriteFile(s.cfg.FS, name, []byte(text), filePerm); err != nil {
			return &DiskError{"write", name, err}
		}
	}
	return nil
}

func parseIdentity(b []byte) (node string, id [16]byte, err error) {
	body, sum, ok := strings.Cut(string(b), "crc32c ")
	if !ok || strings.TrimSpace(sum) != fmt.Sprintf("%08x", checksumString(body)) {
		return "", id, errors.New("identity file is damaged")
	}
	lines := strings.Split(body, "\n")
	if len(lines) < 3 || lines[0] != fmt.Sprintf("tailrace-store %d", formatVersion) {
		return "", id, fmt.Errorf("%w: %q: use a newer program", errVersion, lines[0])
	}
	node, ok1 := strings.CutPrefix(lines[1], "node ")
	hexed, ok2 := strings.CutPrefix(lines[2], "store ")
	raw, err := hex.DecodeString(hexed)
	if !ok1 || !ok2 || err != nil || len(raw) != 16 {
		return "", id, errors.New("identity file does not parse")
	}
	copy(id[:], raw)
	return node, id, nil
}

// epochState is the value of an epoch's state entry, CBOR with integer keys.
type epochState struct {
	Number int32                 `cbor:"1,keyasint"`
	ID     [16]byte              `cbor:"2,keyasint"`
	Parent [16]byte              `cbor:"3,keyasint"`
	ForkAt map[PartitionID]int64 `cbor:"4,keyasint"`
	At     int64                 `cbor:"5,keyasint"`
}

func (s *Store) loadEpochs() error {
	l := s.logs[0]
	for _, k := range l.state.keys(kindEpoch) {
		v, _ := l.state.get(kindEpoch, k)
		var e epochState
		if err := cbor.Unmarshal(v, &e); err != nil {
			return fmt.Errorf("storage: epoch entry does not parse: %w", err)
		}
		s.epochs = append(s.epochs, Epoch{e.Number, e.ID, e.Parent, e.ForkAt, time.UnixMilli(e.At)})
	}
	if n := len(s.epochs); n > 0 {
		s.setEpoch(s.epochs[n-1])
	}
	return nil
}

func (s *Store) setEpoch(e Epoch) {
	s.identity.Epoch = e
	s.epoch.Store(e.Number)
	v := append([]byte(s.identity.NodeID), e.ID[:8]...)
	v = append(v, make([]byte, 8)...)
	t := binary.AppendVarint(nil, int64(len(OriginHeader)))
	t = append(t, OriginHeader...)
	s.originTail = appendField(t, v)
}

// settle makes durable what recovery has found out: state that only the second copy
// had, ranges that are lost, and a new epoch, so that what comes from now on is not
// taken for what was cut. It is the first commit of each log after a repair: one that a
// power cut takes is made again.
func (s *Store) settle(recs []*recovered, lost [][]byte, newEpoch bool) error {
	for i, l := range s.logs {
		ops := append(recs[i].restore, lost[i]...)
		var e Epoch
		if newEpoch = newEpoch && i == 0; newEpoch {
			var eops []byte
			var err error
			if e, eops, err = s.nextEpoch(0); err != nil {
				return err
			}
			ops = append(ops, eops...)
		}
		if len(ops) == 0 {
			continue
		}
		if err := s.commitWait(&Append{log: l, ops: ops}); err != nil {
			return fmt.Errorf("write what recovery found: %w", err)
		}
		if newEpoch {
			s.epochs = append(s.epochs, e)
			s.setEpoch(e)
		}
	}
	return nil
}

// nextEpoch makes the epoch after the current one, and the operation that begins it.
func (s *Store) nextEpoch(atLeast int32) (Epoch, []byte, error) {
	e := Epoch{Number: max(1, atLeast), ForkAt: make(map[PartitionID]int64), At: s.cfg.Now()}
	if n := len(s.epochs); n > 0 {
		e.Number, e.Parent = max(s.epochs[n-1].Number+1, atLeast), s.epochs[n-1].ID
	}
	if _, err := io.ReadFull(s.cfg.Rand, e.ID[:]); err != nil {
		return e, nil, fmt.Errorf("storage: random id: %w", err)
	}
	s.topicsMu.RLock()
	for id, p := range s.partitions {
		if n := p.next.Load(); n > 0 {
			e.ForkAt[id] = n
		}
	}
	s.topicsMu.RUnlock()
	key := string(binary.BigEndian.AppendUint32(nil, uint32(e.Number)))
	return e, appendOp(nil, kindEpoch, opSet, key, mustCBOR(epochState{e.Number, e.ID, e.Parent, e.ForkAt, e.At.UnixMilli()})), nil
}
