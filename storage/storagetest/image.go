package storagetest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// image writes one state that the disk may be left in by a power cut into dst, and says
// in words what it chose. d.mu is held.
func (d *disk) image(seed uint64, dst string) (string, error) {
	if err := d.scanAll(d.top); err != nil {
		return "", err
	}
	r := rand.New(rand.NewPCG(seed, 0x7461696c72616365))
	var note []string
	say := func(format string, args ...any) { note = append(note, fmt.Sprintf(format, args...)) }

	chosen := d.chooseOps(r, say)
	trees := map[*node]map[string]*node{}
	torn := map[*node]bool{}
	for _, o := range chosen {
		o.apply(trees)
		torn[o.node] = o.unsynced
	}

	var write func(dir *node, to string) error
	write = func(dir *node, to string) error {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		entries := dir.durable
		if m := trees[dir]; m != nil {
			entries = m
		}
		names := make([]string, 0, len(entries))
		for name := range entries {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			n := entries[name]
			p := filepath.Join(to, name)
			if n.dir {
				if err := write(n, p); err != nil {
					return err
				}
				continue
			}
			b, how, err := n.content(r, torn[n])
			if err != nil {
				return fmt.Errorf("image of %s: %w", name, err)
			}
			if how != "" {
				say("%s: %s", filepath.Join(dir.path, name), how)
			}
			if err := os.WriteFile(p, b, 0o640); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(d.top, dst); err != nil {
		return "", err
	}
	return strings.Join(note, "; "), nil
}

// chooseOps decides which of the pending entry changes reached the disk.
func (d *disk) chooseOps(r *rand.Rand, say func(string, ...any)) []op {
	if len(d.ops) == 0 {
		return nil
	}
	switch r.IntN(5) {
	case 0:
		say("%d entry changes all lost", len(d.ops))
		return nil
	case 1:
		return d.ops
	case 2, 3: // a journaling file system: in order, up to some point
		k := r.IntN(len(d.ops) + 1)
		if k < len(d.ops) {
			say("entry changes kept up to, not including, %q", d.ops[k])
		}
		return d.ops[:k]
	}
	var kept []op
	for _, o := range d.ops {
		if r.IntN(2) == 0 {
			kept = append(kept, o)
		} else {
			say("%q lost", o)
		}
	}
	return kept
}

func (d *disk) scanAll(dir *node) error {
	if err := d.scan(dir); err != nil {
		return err
	}
	names := make([]string, 0, len(dir.live))
	for name := range dir.live {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if n := dir.live[name]; n.dir {
			if err := d.scanAll(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// content is what the file may hold after a power cut.
func (n *node) content(r *rand.Rand, torn bool) (b []byte, how string, err error) {
	now, err := os.ReadFile(n.link)
	if err != nil {
		return nil, "", err
	}
	synced := min(n.synced, maxFile)
	if torn {
		synced = 0
	}
	sure := make([]byte, synced) // the durable content
	copy(sure, now)
	for s, old := range n.old {
		if s*sectorBytes < synced {
			copy(sure[s*sectorBytes:], old)
		}
	}
	given := 0
	for _, l := range n.lost {
		from, to := min(l.from, synced), min(l.to, synced)
		switch {
		case from == to:
		case r.IntN(3) == 0:
			clear(sure[from:to])
			given++
		case r.IntN(2) == 0:
			garbage(r, sure[from:to])
			given++
		}
	}
	if len(n.old) == 0 && int64(len(now)) == synced {
		if given > 0 {
			return sure, fmt.Sprintf("%d ranges given up by a failed fsync", given), nil
		}
		return sure, "", nil
	}
	if len(n.old) == 0 && int64(len(now)) > synced {
		return n.appended(r, sure, now)
	}
	// Overwritten or cut in place: any mix of old and new sectors, either length.
	length := len(now)
	if r.IntN(2) == 0 {
		length = len(sure)
	}
	b = make([]byte, length)
	for s := 0; s < length; s += sectorBytes {
		e := min(s+sectorBytes, length)
		from := now
		if r.IntN(2) == 0 {
			from = sure
		}
		if s < len(from) {
			copy(b[s:e], from[s:])
		}
	}
	return b, "old and new sectors mixed", nil
}

// maxFile bounds the memory an image takes for one file.
const maxFile = 1 << 30

// appended decides about bytes that were appended and not fsynced.
func (n *node) appended(r *rand.Rand, sure, now []byte) ([]byte, string, error) {
	tail := now[len(sure):]
	cut := r.IntN(len(tail) + 1)
	switch r.IntN(8) {
	case 0:
		return sure, fmt.Sprintf("%d unsynced bytes lost", len(tail)), nil
	case 1:
		return now, fmt.Sprintf("%d unsynced bytes kept", len(tail)), nil
	case 2:
		return now[:len(sure)+cut], fmt.Sprintf("cut %d bytes into %d unsynced", cut, len(tail)), nil
	case 3: // at a sector
		end := (len(sure) + cut) / sectorBytes * sectorBytes
		end = max(end, len(sure))
		return now[:end], fmt.Sprintf("torn at sector, %d of %d unsynced bytes kept", end-len(sure), len(tail)), nil
	case 4: // the length arrived, the rest of the data did not
		b := append([]byte(nil), now...)
		clear(b[len(sure)+cut:])
		return b, fmt.Sprintf("zeros from %d bytes into %d unsynced", cut, len(tail)), nil
	case 5:
		b := append([]byte(nil), now...)
		garbage(r, b[len(sure)+cut:])
		return b, fmt.Sprintf("garbage from %d bytes into %d unsynced", cut, len(tail)), nil
	case 6: // preallocated blocks beyond the data
		b := append([]byte(nil), now[:len(sure)+cut]...)
		b = append(b, make([]byte, 1+r.IntN(4096))...)
		return b, fmt.Sprintf("cut %d bytes into %d unsynced, then %d zeros", cut, len(tail), len(b)-len(sure)-cut), nil
	}
	// Sectors reached the disk in any order.
	b := append([]byte(nil), now...)
	lost := 0
	for s := len(sure) / sectorBytes * sectorBytes; s < len(b); s += sectorBytes {
		from, to := max(s, len(sure)), min(s+sectorBytes, len(b))
		switch r.IntN(4) {
		case 0:
			clear(b[from:to])
			lost++
		case 1:
			garbage(r, b[from:to])
			lost++
		}
	}
	if r.IntN(2) == 0 {
		b = b[:len(sure)+cut]
	}
	return b, fmt.Sprintf("sectors reordered, %d damaged", lost), nil
}

func garbage(r *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}
