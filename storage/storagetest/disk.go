package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
)

// sectorBytes is the unit in which a disk writes: a torn write keeps or loses whole
// sectors.
const sectorBytes = 512

// disk is what the medium would hold after a power cut, kept beside a live directory
// tree. All methods are safe for concurrent use.
type disk struct {
	mu     sync.Mutex
	root   string // live tree
	shadow string // hard links to every file ever seen, so that removed ones can come back
	nextID int
	top    *node
	byIno  map[uint64]*node // files known; their numbers cannot be reused while shadow links exist
	ops    []op             // entry changes not yet durable, oldest first
}

// node is a file or a directory.
type node struct {
	id  int
	ino uint64
	dir bool

	// Of a directory.
	path    string           // below root, "." for the top
	durable map[string]*node // entries a power cut leaves for certain
	live    map[string]*node // entries now, as last seen

	// Of a file.
	link   string           // its name in the shadow directory
	synced int64            // length at the last fsync
	old    map[int64][]byte // by sector number: durable bytes overwritten since
	lost   []span           // written, but a failed fsync gave them up
	bad    []badSpan        // the disk refuses to read them
}

// span is a range of bytes. After a failed fsync Linux marks the pages clean: a later
// fsync succeeds and the bytes may be on the disk or not.
type span struct{ from, to int64 }

type opKind int

const (
	opLink opKind = iota
	opUnlink
	opRename
)

// op is one change of directory entries.
type op struct {
	kind     opKind
	dir      *node
	name     string
	toDir    *node // rename
	toName   string
	node     *node
	unsynced bool // while this is the node's last applied change, its content is torn at will
}

func (o op) String() string {
	switch o.kind {
	case opLink:
		return fmt.Sprintf("create %s/%s", o.dir.path, o.name)
	case opUnlink:
		return fmt.Sprintf("remove %s/%s", o.dir.path, o.name)
	}
	return fmt.Sprintf("rename %s/%s to %s/%s", o.dir.path, o.name, o.toDir.path, o.toName)
}

// newDisk takes over a directory as it is: everything in it counts as durable.
func newDisk(root string) (*disk, error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	shadow, err := os.MkdirTemp(filepath.Dir(root), ".shadow-*")
	if err != nil {
		return nil, err
	}
	d := &disk{root: root, shadow: shadow, byIno: map[uint64]*node{}}
	d.top = d.newDir(".")
	if err := d.adopt(d.top); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *disk) close() error { return os.RemoveAll(d.shadow) }

func (d *disk) newDir(path string) *node {
	d.nextID++
	return &node{id: d.nextID, dir: true, path: path, durable: map[string]*node{}, live: map[string]*node{}}
}

// adopt makes all that lies below dir durable.
func (d *disk) adopt(dir *node) error {
	if err := d.scan(dir); err != nil {
		return err
	}
	dir.durable = clone(dir.live)
	for _, n := range dir.live {
		if n.dir {
			if err := d.adopt(n); err != nil {
				return err
			}
			continue
		}
		size, err := n.size()
		if err != nil {
			return err
		}
		n.synced = size
	}
	d.ops = nil
	return nil
}

func (n *node) size() (int64, error) {
	fi, err := os.Stat(n.link)
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}

// file returns the node of the file at path, learning of it if it is new. It does not
// touch entries.
func (d *disk) file(path string, fi fs.FileInfo) (*node, error) {
	ino := inode(fi)
	if n := d.byIno[ino]; n != nil {
		return n, nil
	}
	d.nextID++
	n := &node{id: d.nextID, ino: ino, link: filepath.Join(d.shadow, fmt.Sprint(d.nextID))}
	if err := os.Link(path, n.link); err != nil {
		return nil, err
	}
	d.byIno[ino] = n
	return n, nil
}

// rel is a path below root.
func (d *disk) rel(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	r, err := filepath.Rel(d.root, abs)
	if err != nil {
		return "", err
	}
	if r == ".." || strings.HasPrefix(r, "../") {
		return "", fmt.Errorf("%s is outside of the simulated disk %s", path, d.root)
	}
	return r, nil
}

// lookupDir walks to a directory, scanning on the way what is not known yet.
func (d *disk) lookupDir(rel string) (*node, error) {
	cur := d.top
	if rel == "." {
		return cur, nil
	}
	for _, part := range strings.Split(rel, string(filepath.Separator)) {
		next := cur.live[part]
		if next == nil {
			if err := d.scan(cur); err != nil {
				return nil, err
			}
			if next = cur.live[part]; next == nil {
				return nil, &fs.PathError{Op: "lookup", Path: rel, Err: fs.ErrNotExist}
			}
		}
		if !next.dir {
			return nil, &fs.PathError{Op: "lookup", Path: rel, Err: syscall.ENOTDIR}
		}
		cur = next
	}
	return cur, nil
}

func (d *disk) parent(path string) (*node, string, error) {
	r, err := d.rel(path)
	if err != nil {
		return nil, "", err
	}
	dir, err := d.lookupDir(filepath.Dir(r))
	return dir, filepath.Base(r), err
}

// scan compares a live directory with what is known of it and records what somebody
// who does not go through this layer has done.
func (d *disk) scan(dir *node) error {
	full := filepath.Join(d.root, dir.path)
	list, err := os.ReadDir(full)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			list = nil
		} else {
			return err
		}
	}
	now := make(map[string]*node, len(list))
	for _, e := range list {
		p := filepath.Join(full, e.Name())
		if e.IsDir() {
			if n := dir.live[e.Name()]; n != nil && n.dir {
				now[e.Name()] = n
			} else {
				now[e.Name()] = d.newDir(filepath.Join(dir.path, e.Name()))
			}
			continue
		}
		fi, err := os.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone since ReadDir
		} else if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			continue
		}
		n, err := d.file(p, fi)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		now[e.Name()] = n
	}
	d.record(dir, now)
	sealed(now)
	return nil
}

// record turns the difference between the known and the present entries of a directory
// into changes.
func (d *disk) record(dir *node, now map[string]*node) {
	was := dir.live
	var gone, come []string
	for name, n := range was {
		if now[name] != n {
			gone = append(gone, name)
		}
	}
	for name, n := range now {
		if was[name] != n {
			come = append(come, name)
		}
	}
	dir.live = now
	if len(gone) == 0 && len(come) == 0 {
		return
	}
	sort.Strings(gone)
	sort.Strings(come)
	sealed(was)
	if first := lowestSegment(now); first != "" && now[first] != was[first] && anySegment(gone) {
		gone, come = d.recordTruncation(dir, was, now, first, gone, come)
	}
	for _, name := range come {
		// A file that only changed its name within the directory.
		moved := ""
		for i, g := range gone {
			if was[g] == now[name] {
				moved = g
				gone = append(gone[:i:i], gone[i+1:]...)
				break
			}
		}
		if moved != "" {
			d.ops = append(d.ops, op{kind: opRename, dir: dir, name: moved, toDir: dir, toName: name, node: now[name]})
			continue
		}
		if was[name] != nil {
			d.ops = append(d.ops, op{kind: opUnlink, dir: dir, name: name, node: was[name]})
			for i, g := range gone {
				if g == name {
					gone = append(gone[:i:i], gone[i+1:]...)
					break
				}
			}
		}
		d.ops = append(d.ops, op{kind: opLink, dir: dir, name: name, node: now[name]})
	}
	for _, name := range gone {
		d.ops = append(d.ops, op{kind: opUnlink, dir: dir, name: name, node: was[name]})
	}
}

// recordTruncation replays tidwall/wal's TruncateFront, which left the new file `first`
// in place of older segments: temporary file, rename to .START, removals, rename.
func (d *disk) recordTruncation(dir *node, was, now map[string]*node, first string, gone, come []string) (restGone, restCome []string) {
	n := now[first]
	start := first + ".START"
	d.ops = append(d.ops,
		op{kind: opLink, dir: dir, name: start + ".TEMP", node: n, unsynced: true},
		op{kind: opRename, dir: dir, name: start + ".TEMP", toDir: dir, toName: start, node: n})
	var last *node
	for _, name := range gone {
		if isSegment(name) && name <= first {
			d.ops = append(d.ops, op{kind: opUnlink, dir: dir, name: name, node: was[name]})
			last = was[name]
		} else {
			restGone = append(restGone, name)
		}
	}
	d.ops = append(d.ops, op{kind: opRename, dir: dir, name: start, toDir: dir, toName: first, node: n})
	for _, name := range come {
		if name != first {
			restCome = append(restCome, name)
		}
	}
	// What the library wrote into the temporary file is a tail of the segment it cut, and
	// was fsynced; what was appended since is not.
	if last != nil {
		n.synced = sharedTail(last.link, n.link)
	}
	return restGone, restCome
}

// sharedTail is the length of the longest prefix of the file `part` that ends the file
// `whole`.
func sharedTail(whole, part string) int64 {
	a, err := os.ReadFile(whole)
	if err != nil {
		return 0
	}
	b, err := os.ReadFile(part)
	if err != nil {
		return 0
	}
	for k := min(len(a), len(b)); k > 0; k-- {
		if bytes.Equal(a[len(a)-k:], b[:k]) {
			return int64(k)
		}
	}
	return 0
}

// sealed marks segments that the library fsynced because it has since begun a later one.
func sealed(entries map[string]*node) {
	last := ""
	for name := range entries {
		if isSegment(name) && name > last {
			last = name
		}
	}
	for name, n := range entries {
		if !n.dir && n.old == nil && isSegment(name) && name < last {
			if size, err := n.size(); err == nil {
				n.synced = size
			}
		}
	}
}

func isSegment(name string) bool {
	if len(name) != 20 {
		return false
	}
	for i := 0; i < len(name); i++ {
		if name[i] < '0' || name[i] > '9' {
			return false
		}
	}
	return true
}

func lowestSegment(m map[string]*node) string {
	low := ""
	for name := range m {
		if isSegment(name) && (low == "" || name < low) {
			low = name
		}
	}
	return low
}

func anySegment(names []string) bool {
	for _, n := range names {
		if isSegment(n) {
			return true
		}
	}
	return false
}

func clone(m map[string]*node) map[string]*node {
	c := make(map[string]*node, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// The following record what went through the file layer. Each is called with d.mu held,
// after the call on the live tree succeeded unless said otherwise.

// opened notes a file that was opened, and created if its name is new.
func (d *disk) opened(path string) (*node, error) {
	dir, name, err := d.parent(path)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	n, err := d.file(path, fi)
	if err != nil {
		return nil, err
	}
	if dir.live[name] != n {
		if err := d.scan(dir); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// sync makes the file's content durable, as far as it was written when the call began.
func (n *node) sync() error {
	size, err := n.size()
	if err != nil {
		return err
	}
	n.synced, n.old = size, nil
	return nil
}

// syncFailed notes an fsync that reported a failure: what it was to write is given up.
func (n *node) syncFailed() {
	if size, err := n.size(); err == nil && size > n.synced {
		n.lost = append(n.lost, span{n.synced, size})
	}
}

// cutLost forgets given-up bytes beyond a new length.
func (n *node) cutLost(size int64) {
	kept := n.lost[:0]
	for _, s := range n.lost {
		if s.to = min(s.to, size); s.from < s.to {
			kept = append(kept, s)
		}
	}
	n.lost = kept
}

// syncDir makes the entries of a directory durable.
func (d *disk) syncDir(dir *node) error {
	if err := d.scan(dir); err != nil {
		return err
	}
	kept := d.ops[:0]
	for _, o := range d.ops {
		if o.dir == dir || o.toDir == dir {
			o.apply(nil)
		} else {
			kept = append(kept, o)
		}
	}
	clear(d.ops[len(kept):])
	d.ops = kept
	d.release()
	return nil
}

// apply performs the change on the durable entries, or on the copies in m.
func (o op) apply(m map[*node]map[string]*node) {
	at := func(dir *node) map[string]*node {
		if m == nil {
			return dir.durable
		}
		if m[dir] == nil {
			m[dir] = clone(dir.durable)
		}
		return m[dir]
	}
	switch o.kind {
	case opLink:
		at(o.dir)[o.name] = o.node
	case opUnlink:
		if e := at(o.dir); e[o.name] == o.node {
			delete(e, o.name)
		}
	case opRename:
		if e := at(o.dir); e[o.name] == o.node {
			delete(e, o.name)
		}
		at(o.toDir)[o.toName] = o.node
	}
}

// release forgets files that no power cut can bring back.
func (d *disk) release() {
	used := map[*node]bool{}
	var use func(*node)
	use = func(n *node) {
		if used[n] {
			return
		}
		used[n] = true
		for _, m := range []map[string]*node{n.durable, n.live} {
			for _, e := range m {
				use(e)
			}
		}
	}
	use(d.top)
	for _, o := range d.ops {
		use(o.node)
	}
	for ino, n := range d.byIno {
		if !used[n] {
			_ = os.Remove(n.link)
			delete(d.byIno, ino)
		}
	}
}

// overwriting is called before bytes [off, off+length) of the file are overwritten or
// cut off: those of them that are durable are kept.
func (n *node) overwriting(off, length int64) error {
	end := min(off+length, n.synced)
	if off >= end {
		return nil
	}
	f, err := os.Open(n.link)
	if err != nil {
		return err
	}
	defer f.Close()
	for s := off / sectorBytes; s*sectorBytes < end; s++ {
		if n.old == nil {
			n.old = map[int64][]byte{}
		}
		if _, ok := n.old[s]; ok {
			continue
		}
		b := make([]byte, min(sectorBytes, n.synced-s*sectorBytes))
		if _, err := f.ReadAt(b, s*sectorBytes); err != nil && err != io.EOF {
			return err
		}
		n.old[s] = b
	}
	return nil
}
