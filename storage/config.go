package storage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"tailrace/storage/internal/durable"
)

// FS is the file system a Store works on; File one of its files. See package
// storagetest for one that can lose power.
type (
	FS   = durable.FS
	File = durable.File
)

// Config is what [Open] needs. Only Dir and Classes are required.
type Config struct {
	// Dir holds everything of the store. One process at a time.
	Dir string
	// FS is the file system, nil the operating system's. tidwall/wal opens the
	// segments itself, so an FS stands on top of real files.
	FS FS
	// NodeID names the owner. It is written into a new directory; a directory
	// that belongs to another id is refused. Empty: whatever the directory says.
	NodeID string
	// OriginHeaders adds to each record given to Append.Record or RecordTail
	// the header "tr" with its position (see [OriginHeader]): for nodes.
	OriginHeaders bool
	// NewEpoch begins a new epoch at this Open, whatever recovery finds: for a log
	// that is known to have lost its end without a trace (a disk that lied about a
	// flush, a card restored from an image).
	NewEpoch bool
	// Classes are the storage classes, one commit log each. The first is the
	// default of topics that name none, and keeps the store's own state.
	Classes []ClassConfig
	// MaxBytes is the disk budget of all classes together, 0 none. Two of the
	// largest segments within it are a reserve.
	MaxBytes int64
	// Folds combine the deltas of Append.Fold with what a key held before (nil
	// when nothing). A fold must be deterministic and must not keep its
	// arguments. It must accept that old is nil for a delta from the middle of
	// a history: such a result is overwritten before it can be seen.
	Folds map[StateKind]FoldFunc
	// RetentionInterval is how often retention is applied; 0 is 30 s, negative
	// never (but for calls of Store.Retain and for the disk budget).
	RetentionInterval time.Duration
	// ScrubInterval is in what time everything that is sealed is read once, to find
	// rot; 0 is 30 days, negative never (but for calls of Store.Scrub).
	ScrubInterval time.Duration
	// ScrubRate bounds what that reads, in bytes per second; 0 is 1 MiB/s.
	ScrubRate int64
	// CompactBytes bounds the memory of a compaction's keys; 0 is 64 MiB, which is
	// two million keys at once. More are compacted in several passes.
	CompactBytes int64
	// Now is the clock, nil time.Now. It stamps commits and drives retention.
	Now func() time.Time
	// Rand makes ids, nil crypto/rand.
	Rand io.Reader
	// Logger, nil discards.
	Logger *slog.Logger
}

// FoldFunc returns what a key holds after delta.
type FoldFunc func(old, delta []byte) []byte

// FullPolicy says what happens when a class is at its disk budget.
type FullPolicy uint8

const (
	// Reject refuses appends with ErrFull until retention, or the hub's
	// acknowledgements, make room.
	Reject FullPolicy = iota + 1
	// DropOldest gives up the oldest segment and declares the ranges that only
	// it held (Store.Losses).
	DropOldest
)

func (p FullPolicy) String() string {
	switch p {
	case Reject:
		return "reject"
	case DropOldest:
		return "drop-oldest"
	}
	return "none"
}

// ParseFullPolicy is the inverse of String.
func ParseFullPolicy(s string) (FullPolicy, error) {
	switch s {
	case "reject":
		return Reject, nil
	case "drop-oldest":
		return DropOldest, nil
	}
	return 0, fmt.Errorf("full-disk policy %q: use reject or drop-oldest", s)
}

// ClassConfig is a storage class: a commit log with its own rhythm and budget.
type ClassConfig struct {
	// Name is the class's directory: lower-case letters, digits, '-', '_'.
	Name string
	// SegmentBytes is the size at which a new segment file begins; 0 is 1 MiB.
	// The newest segment is held in memory by tidwall/wal.
	SegmentBytes int
	// CommitInterval is the least time between two commits, except that the
	// first append after idle is committed at once; 0 commits as fast as the
	// disk does (what waits during one fsync shares the next).
	CommitInterval time.Duration
	// Pack keeps batches built from single records packed (snappy) where that makes them
	// smaller: fewer bytes to the flash for some CPU time. Read gives them as they were.
	Pack bool
	// CommitBytes ends the wait of CommitInterval early; 0 is 256 KiB.
	CommitBytes int
	// MaxBatchBytes bounds the batches that a commit builds from single
	// records; 0 is 512 KiB.
	MaxBatchBytes int
	// MaxBytes is the disk budget of the class, 0 none. A reserve of two
	// segments within it is kept for the store's own state.
	MaxBytes int64
	// WhenFull is required with MaxBytes, the class's or the store's.
	WhenFull FullPolicy
	// Priority says who gives up first when the budget of all classes or the
	// file system is used up: the lowest; of equal ones the last in the list. A
	// class never makes one of a higher rank give up what the hub does not have.
	Priority int
	// MinFreeBytes refuses appends (or drops, by WhenFull) when the file
	// system has less left than this; 0 is two segments and 64 KiB. State may use
	// three quarters of it. Negative: no limit.
	MinFreeBytes int64
}

const (
	defaultSegmentBytes  = 1 << 20
	defaultCommitBytes   = 256 << 10
	defaultBatchBytes    = 512 << 10
	defaultRetentionTick = 30 * time.Second
	minSegmentBytes      = 4 << 10
	maxSegmentBytes      = 1 << 30
	maxCommitBytes       = 4 << 20  // a commit takes no further append beyond this
	maxWaitingBytes      = 16 << 20 // Submit blocks beyond this, per class

	// MaxRecordBytes bounds one record and one batch given to an Append, and
	// with them what a reader of the log must be ready to allocate.
	MaxRecordBytes = 16 << 20
	// MaxStateBytes bounds key and value of one state entry.
	MaxStateBytes = 4 << 20
)

func (c Config) withDefaults() Config {
	if c.FS == nil {
		c.FS = durable.OS{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.RetentionInterval == 0 {
		c.RetentionInterval = defaultRetentionTick
	}
	if c.ScrubInterval == 0 {
		c.ScrubInterval = defaultScrubInterval
	}
	if c.ScrubRate <= 0 {
		c.ScrubRate = defaultScrubRate
	}
	c.Classes = append([]ClassConfig(nil), c.Classes...)
	for i := range c.Classes {
		cc := &c.Classes[i]
		if cc.SegmentBytes == 0 {
			cc.SegmentBytes = defaultSegmentBytes
		}
		if cc.CommitBytes == 0 {
			cc.CommitBytes = defaultCommitBytes
		}
		if cc.MaxBatchBytes == 0 {
			cc.MaxBatchBytes = defaultBatchBytes
		}
		if cc.MinFreeBytes == 0 {
			cc.MinFreeBytes = 2*int64(cc.SegmentBytes) + 64<<10
		}
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Dir == "" {
		bad("storage: directory is empty")
	}
	if len(c.NodeID) > 255 || strings.ContainsAny(c.NodeID, "\x00\n\r") {
		bad("storage: node id %q: at most 255 bytes, one line", c.NodeID)
	}
	if len(c.Classes) == 0 {
		bad("storage: no storage class; at least one is required")
	}
	seen := make(map[string]bool)
	for _, cc := range c.Classes {
		if !validClassName(cc.Name) {
			bad("storage: class name %q: 1 to 32 of a-z 0-9 - _", cc.Name)
		}
		if seen[cc.Name] {
			bad("storage: class %q is there twice", cc.Name)
		}
		seen[cc.Name] = true
		if cc.SegmentBytes < minSegmentBytes || cc.SegmentBytes > maxSegmentBytes {
			bad("storage: class %q: segment_bytes %d: %d to %d", cc.Name, cc.SegmentBytes, minSegmentBytes, maxSegmentBytes)
		}
		if cc.CommitInterval < 0 || cc.CommitInterval > time.Minute {
			bad("storage: class %q: commit_interval %v: 0 to 1m", cc.Name, cc.CommitInterval)
		}
		if cc.CommitBytes < 0 || cc.MaxBatchBytes < 1024 || cc.MaxBatchBytes > MaxRecordBytes {
			bad("storage: class %q: commit_bytes %d, max_batch_bytes %d: the latter 1024 to %d", cc.Name, cc.CommitBytes, cc.MaxBatchBytes, MaxRecordBytes)
		}
		if cc.WhenFull > DropOldest || (cc.MaxBytes > 0 || c.MaxBytes > 0) && cc.WhenFull == 0 {
			bad("storage: class %q: a disk budget needs when_full: reject or drop-oldest", cc.Name)
		}
		if cc.MaxBytes < 0 || cc.MaxBytes > 0 && cc.MaxBytes < 6*int64(cc.SegmentBytes) {
			bad("storage: class %q: max_bytes %d: 0 or at least 6 segments (%d)", cc.Name, cc.MaxBytes, 6*int64(cc.SegmentBytes))
		}
	}
	var least int64
	for _, cc := range c.Classes {
		least = max(least, (4+2*int64(len(c.Classes)))*int64(cc.SegmentBytes))
	}
	if c.MaxBytes < 0 || c.MaxBytes > 0 && c.MaxBytes < least {
		bad("storage: max_bytes %d over all classes: 0 or at least four segments and two per class (%d)", c.MaxBytes, least)
	}
	return errors.Join(errs...)
}

func validClassName(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}
