package durable

import (
	"errors"
	"fmt"
	"time"
)

// Unreadable tells whether an error of a read says that the disk does not give these bytes.
func Unreadable(err error) bool {
	for _, e := range unreadable {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Range is a run of bytes of a file, half-open.
type Range struct{ From, To int64 }

func (r Range) String() string { return fmt.Sprintf("[%d, %d)", r.From, r.To) }

const (
	pageBytes = 4096 // the kernel reads no less at a time
	rereads   = 3
	firstWait = 50 * time.Millisecond
)

// Patience bounds how often all is read again that the disk refused once: a loose contact
// or a card that was busy gives it at another time, a bad sector never, and each attempt
// may take the disk seconds. It is not for concurrent use.
type Patience struct{ Left int }

// Salvage is ReadFile for a disk that does not give all of a file: what it refuses, also
// when it is asked again after a while, is zeros in data and named in bad, by whole pages.
// err is for all other reasons, and as ReadFile's.
func Salvage(fsys FS, name string, max int64, p *Patience) (data []byte, bad []Range, err error) {
	f, err := fsys.OpenFile(name, 0, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	data = make([]byte, min(st.Size(), max))
	bad, n, err := SalvageAt(f, data, 0, p)
	return data[:n], bad, err
}

// SalvageAt is Salvage for a piece of an open file. n is how much of b was filled; less than
// all only with an error.
func SalvageAt(f File, b []byte, off int64, p *Patience) (bad []Range, n int, err error) {
	for n < len(b) {
		m, err := f.ReadAt(b[n:], off+int64(n))
		if n += m; n == len(b) {
			break
		}
		if err == nil {
			continue
		}
		if !Unreadable(err) {
			return bad, n, err
		}
		at := off + int64(n)
		end := n + int(min(pageBytes-at%pageBytes, int64(len(b)-n)))
		m, err = again(f, b[n:end], at, p)
		if err != nil && !Unreadable(err) {
			return bad, n + m, err
		}
		if err != nil {
			clear(b[n:end])
			if k := len(bad); k > 0 && bad[k-1].To == at {
				bad[k-1].To = off + int64(end)
			} else {
				bad = append(bad, Range{at, off + int64(end)})
			}
		}
		n = end
	}
	return bad, n, nil
}

// again reads b some more times, with pauses that grow.
func again(f File, b []byte, at int64, p *Patience) (n int, err error) {
	wait := firstWait
	for range rereads {
		if p.Left > 0 {
			p.Left--
			time.Sleep(wait)
		}
		if n, err = f.ReadAt(b, at); n == len(b) {
			return n, nil
		}
		if !Unreadable(err) || p.Left == 0 {
			break
		}
		wait *= 4
	}
	return n, err
}
