package storage

import (
	"errors"
	"io/fs"

	"tailrace/storage/internal/durable"
)

// A StateFile is a small file of its owner's beside a Store: what is not worth a record, and must not leave
// the machine with the log, such as keys.
type StateFile struct {
	FS   FS // nil = the operating system's
	Path string
}

// maxStateFile is more than an owner may write.
const maxStateFile = 1 << 20

func (f StateFile) fs() FS {
	if f.FS == nil {
		return durable.OS{}
	}
	return f.FS
}

// Load returns what Save wrote last; nothing when it never did.
func (f StateFile) Load() ([]byte, error) {
	b, err := durable.ReadFile(f.fs(), f.Path, maxStateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// Save replaces the file; after a power cut either the old or the new one is there. Its owner alone may read it.
func (f StateFile) Save(b []byte) error {
	return durable.WriteFile(f.fs(), f.Path, b, 0o600)
}
