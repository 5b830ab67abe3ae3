package storage

import (
	"errors"
	"fmt"
	"syscall"
)

var (
	// ErrClosed: the store is closed or closing. Nothing of the append is
	// durable.
	ErrClosed = errors.New("storage: store is closed")
	// ErrFull: the class is at its disk budget (policy Reject), or the file
	// system is full. Nothing of the append is durable; room may come.
	ErrFull = errors.New("storage: disk budget is used up")
	// ErrUncertain: a write or fsync failed and what it wrote could not be cut off
	// either. The append is not acknowledged, but after the next start it may be
	// there. Every other error means that nothing of it is or will be durable.
	ErrUncertain = errors.New("storage: outcome unknown until the disk works again")
	// ErrOffsetOutOfRange: the offset is below the partition's start or above
	// its high watermark.
	ErrOffsetOutOfRange = errors.New("storage: offset out of range")
	// ErrExists: a topic of this name exists.
	ErrExists = errors.New("storage: topic exists")
	// ErrUnknownTopic: no topic of this name, or it was deleted.
	ErrUnknownTopic = errors.New("storage: unknown topic")
	// ErrTooLarge: a record, batch or state value beyond MaxRecordBytes or
	// MaxStateBytes.
	ErrTooLarge = errors.New("storage: too large")
	// ErrWrongClass: an append holds a partition of another storage class than
	// its own. Use one append per class.
	ErrWrongClass = errors.New("storage: partition belongs to another storage class")
	// ErrInvalid: a topic name, configuration or record that cannot be stored.
	ErrInvalid = errors.New("storage: invalid")

	// errVersion: an intact entry of a later format. It is never taken for
	// damage, so an older program does not cut what a newer one wrote.
	errVersion = errors.New("storage: format of a later version")
)

// DiskError is a failed write, fsync or read. After a failed write or fsync
// nothing of the commit is acknowledged, and the log has been cut back to what
// is durable and reopened, or will be with the next append.
// errors.Is(err, ErrFull) tells when the cause is a full file system.
type DiskError struct {
	Op   string // what was being done
	Path string
	Err  error
}

func (e *DiskError) Error() string {
	return fmt.Sprintf("storage: %s %s: %v", e.Op, e.Path, e.Err)
}

func (e *DiskError) Unwrap() error { return e.Err }

// Is makes a full file system look like a full budget.
func (e *DiskError) Is(target error) bool {
	return target == ErrFull && (errors.Is(e.Err, syscall.ENOSPC) || errors.Is(e.Err, errQuota))
}
