package scenario

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"testing"
)

// stateEntries are where the entries of state of a segment stand, the last first.
func stateEntries(b []byte) (at []int) {
	for pos := 0; pos < len(b); {
		n, w := binary.Uvarint(b[pos:])
		if w <= 0 || int(n) > len(b)-pos-w {
			break
		}
		if b[pos+w+3] == 2 {
			at = append([]int{pos + w}, at...)
		}
		pos += w + int(n)
	}
	return at
}

// An entry that told state is rotten, of the node or of the hub, which were shut down in order:
// one of the newest, which nothing newer tells again, or one of the oldest. What was
// acknowledged is at the hub once, or declared.
func TestRottenStateLosesAndDoublesNothing(t *testing.T) {
	for _, who := range []string{"node", "hub"} {
		for _, which := range []int{0, 1, 2, 3, 4, 6, 8, 13, -2, -1} {
			t.Run(fmt.Sprint(who, which), func(t *testing.T) {
				inTruth(t, nil, func(w *truth) {
					w.put(w.node, stream, "a", 0, 60)
					w.put(w.node, quiet, "q", 0, 5)
					w.complete()
					w.put(w.node, stream, "a", 60, 60)
					w.complete()
					w.node.off()
					w.hub.off()
					m := map[string]*machine{"node": w.node, "hub": w.hub}[who]
					segs, err := filepath.Glob(filepath.Join(m.dir(), "*", "log", "0*"))
					w.must(err)
					sort.Strings(segs)
					name := segs[len(segs)-1]
					if fi, err := os.Stat(name); err == nil && fi.Size() == 0 {
						name = segs[len(segs)-2]
					}
					b, err := os.ReadFile(name)
					w.must(err)
					at := stateEntries(b)
					i := which
					if i < 0 {
						i = len(at) + which
					}
					if i < 0 || i >= len(at) {
						if who == "hub" {
							t.Fatalf("%d entries of state in %s", len(at), name)
						}
						return // a node's log has fewer
					}
					b[at[i]+33] ^= 4 // of its time: the CRC is wrong
					w.must(os.WriteFile(name, b, 0o600))
					w.must(w.hub.on())
					w.must(w.node.on())
					w.put(w.node, stream, "a", 120, 20)
					w.complete()
					w.exact(stream)
					w.exact(quiet)
					if rows := w.node.store().Losses(); who == "hub" && len(rows) > 0 {
						t.Errorf("losses of the node: %+v", rows)
					}
				})
			})
		}
	}
}
