package storagetest

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"tailrace/storage/internal/durable"
)

// CrashFS is a file layer over a real directory that can lose power, fail and lie. It
// implements storage.FS. Safe for concurrent use.
type CrashFS struct {
	d *disk

	// The rest is guarded by d.mu.
	calls   [callKinds]int64
	changes int64 // calls that change the disk
	faults  []*armed
	lies    [callKinds]bool
	told    int64
	delay   [callKinds]time.Duration
	free    int64
	locked  map[string]bool
	cut     *cutPlan
	onCut   func()
	gates   [callKinds]chan chan struct{}
	off     bool
	note    string
	err     error
}

type cutPlan struct {
	at    int64
	after bool
	seed  uint64
	dst   string
}

var _ durable.FS = (*CrashFS)(nil)

// NewCrashFS takes over dir, which is made when absent. What it holds counts as durable.
// Close removes the shadow directory beside it.
func NewCrashFS(dir string) (*CrashFS, error) {
	d, err := newDisk(dir)
	if err != nil {
		return nil, fmt.Errorf("crash file layer over %s: %w", dir, err)
	}
	return &CrashFS{d: d, free: -1, locked: map[string]bool{}}, nil
}

// Close removes what CrashFS keeps beside the directory, not the directory.
func (c *CrashFS) Close() error { return c.d.close() }

// Dir is the live directory.
func (c *CrashFS) Dir() string { return c.d.root }

// Inject sets a fault. It returns a function that tells how often it fired, which a test
// must ask: a fault that never surfaced proves nothing.
func (c *CrashFS) Inject(f Fault) (fired func() int) {
	a := &armed{Fault: f}
	c.d.mu.Lock()
	c.faults = append(c.faults, a)
	c.d.mu.Unlock()
	return func() int {
		c.d.mu.Lock()
		defer c.d.mu.Unlock()
		return a.fired
	}
}

// Heal removes all faults.
func (c *CrashFS) Heal() {
	c.d.mu.Lock()
	c.faults = nil
	c.d.mu.Unlock()
}

// Lie makes calls of the kind (Sync, SyncDir) report success without doing anything, as a
// disk does that acknowledges a flush it only has in its cache. Controls use it: a test
// that does not notice a lying disk does not see a missing fsync either.
func (c *CrashFS) Lie(kind Call, on bool) {
	c.d.mu.Lock()
	c.lies[kind] = on
	c.d.mu.Unlock()
}

// Lies counts the calls that were answered with a lie.
func (c *CrashFS) Lies() int64 {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	return c.told
}

// Delay makes calls of the kind take so long, in the simulated time of a bubble. There it
// only suits code in which nobody waits for a mutex that is held during such a call: the
// time of a bubble stands still while a goroutine waits for a mutex.
func (c *CrashFS) Delay(kind Call, d time.Duration) {
	c.d.mu.Lock()
	c.delay[kind] = d
	c.d.mu.Unlock()
}

// Gate makes the next call of the kind send a channel on ch, and wait until that is
// closed, before it does anything: a test decides what happens while a call is under way.
// nil takes the gate away. With the power off nobody waits.
func (c *CrashFS) Gate(kind Call, ch chan chan struct{}) {
	c.d.mu.Lock()
	c.gates[kind] = ch
	c.d.mu.Unlock()
}

// SetFree sets what Free reports; negative asks the operating system.
func (c *CrashFS) SetFree(n int64) {
	c.d.mu.Lock()
	c.free = n
	c.d.mu.Unlock()
}

// Calls counts the calls of a kind so far, those that failed included. Any and Change are
// allowed.
func (c *CrashFS) Calls(kind Call) int64 {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	switch kind {
	case Change:
		return c.changes
	case Any:
		n := int64(0)
		for _, k := range c.calls {
			n += k
		}
		return n
	}
	return c.calls[kind]
}

// CutAt cuts the power at the n-th call from now, counted from 1, that changes the disk:
// before it has any effect, or after it took effect but before its caller hears of it.
// The state left is that of Image(seed, dst). Every later call returns ErrPowerCut.
func (c *CrashFS) CutAt(n int64, after bool, seed uint64, dst string) {
	c.d.mu.Lock()
	c.cut = &cutPlan{at: c.changes + n, after: after, seed: seed, dst: dst}
	c.d.mu.Unlock()
}

// OnCut sets what happens at the very moment the power goes off: a test cuts the network
// there. f runs within the call during which it happens and must not call the CrashFS.
func (c *CrashFS) OnCut(f func()) {
	c.d.mu.Lock()
	c.onCut = f
	c.d.mu.Unlock()
}

// Cut cuts the power now, unless it is off already, and writes the state left into dst. It
// returns what was chosen, in words.
func (c *CrashFS) Cut(seed uint64, dst string) (string, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if !c.off {
		c.powerOff(seed, dst)
	}
	return c.note, c.err
}

// Image writes one state, chosen by seed, that a power cut now may leave into dst, which
// must not exist. The power stays as it is.
func (c *CrashFS) Image(seed uint64, dst string) (string, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	return c.d.image(seed, dst)
}

// Off tells whether the power was cut, what was chosen, and the error if the state could not be
// written.
func (c *CrashFS) Off() (bool, string, error) {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	return c.off, c.note, c.err
}

func (c *CrashFS) powerOff(seed uint64, dst string) {
	c.off = true
	if c.onCut != nil {
		c.onCut()
	}
	c.note, c.err = c.d.image(seed, dst)
}

// call runs one call of the file layer: it counts it, lets it fail, cuts the power.
// do performs it on the live tree and updates the model; d.mu is held.
func (c *CrashFS) call(kind Call, path string, do func(short int) error) error {
	c.d.mu.Lock()
	wait, gate := c.delay[kind], c.gates[kind]
	if c.off {
		gate = nil
	} else {
		c.gates[kind] = nil
	}
	c.d.mu.Unlock()
	if gate != nil {
		open := make(chan struct{})
		gate <- open
		<-open
	}
	if wait > 0 {
		time.Sleep(wait)
	}
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.off {
		return &fs.PathError{Op: kind.String(), Path: path, Err: ErrPowerCut}
	}
	c.calls[kind]++
	cut := false
	if kind.changes() {
		c.changes++
		cut = c.cut != nil && c.changes == c.cut.at
	}
	if cut && !c.cut.after {
		c.powerOff(c.cut.seed, c.cut.dst)
		return &fs.PathError{Op: kind.String(), Path: path, Err: ErrPowerCut}
	}
	for _, a := range c.faults {
		if !a.hit(kind, path) {
			continue
		}
		if a.After {
			if err := do(-1); err != nil {
				return err
			}
		} else if kind == Write && a.Short > 0 {
			if err := do(a.Short); err != nil {
				return err
			}
		} else if kind == Sync {
			_ = do(syncFails)
		}
		return &fs.PathError{Op: kind.String(), Path: path, Err: a.Err}
	}
	err := error(nil)
	if c.lies[kind] {
		c.told++
	} else {
		err = do(-1)
	}
	if cut {
		c.powerOff(c.cut.seed, c.cut.dst)
		return &fs.PathError{Op: kind.String(), Path: path, Err: ErrPowerCut}
	}
	return err
}

func (c *CrashFS) MkdirAll(dir string, perm fs.FileMode) error {
	return c.call(Mkdir, dir, func(int) error {
		if err := os.MkdirAll(dir, perm); err != nil {
			return err
		}
		r, err := c.d.rel(dir)
		if err != nil {
			return err
		}
		_, err = c.d.lookupDir(r)
		return err
	})
}

func (c *CrashFS) OpenFile(name string, flag int, perm fs.FileMode) (durable.File, error) {
	kind := Open
	if flag&os.O_CREATE != 0 {
		kind = Create
	}
	var f *file
	err := c.call(kind, name, func(int) error {
		if flag&os.O_TRUNC != 0 {
			if fi, err := os.Lstat(name); err == nil {
				n, err := c.d.file(name, fi)
				if err != nil {
					return err
				}
				if err := n.overwriting(0, fi.Size()); err != nil {
					return err
				}
			}
		}
		o, err := os.OpenFile(name, flag, perm)
		if err != nil {
			return err
		}
		n, err := c.d.opened(name)
		if err != nil {
			o.Close()
			return err
		}
		f = &file{c: c, f: o, n: n, append: flag&os.O_APPEND != 0}
		return nil
	})
	if err != nil {
		if f != nil {
			f.f.Close()
		}
		return nil, err
	}
	return f, nil
}

func (c *CrashFS) ReadDir(dir string) (list []fs.DirEntry, err error) {
	err = c.call(ReadDir, dir, func(int) (err error) { list, err = os.ReadDir(dir); return err })
	return list, err
}

func (c *CrashFS) Stat(name string) (fi fs.FileInfo, err error) {
	err = c.call(Stat, name, func(int) (err error) { fi, err = os.Stat(name); return err })
	return fi, err
}

func (c *CrashFS) Rename(from, to string) error {
	return c.call(Rename, to, func(int) error {
		fromDir, fromName, err := c.d.parent(from)
		if err != nil {
			return err
		}
		toDir, toName, err := c.d.parent(to)
		if err != nil {
			return err
		}
		for _, dir := range []*node{fromDir, toDir} {
			if err := c.d.scan(dir); err != nil {
				return err
			}
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
		n := fromDir.live[fromName]
		delete(fromDir.live, fromName)
		toDir.live[toName] = n
		if n.dir {
			n.moved(filepath.Join(toDir.path, toName))
		}
		c.d.ops = append(c.d.ops, op{kind: opRename, dir: fromDir, name: fromName, toDir: toDir, toName: toName, node: n})
		return nil
	})
}

func (n *node) moved(path string) {
	n.path = path
	for name, e := range n.live {
		if e.dir {
			e.moved(filepath.Join(path, name))
		}
	}
}

func (c *CrashFS) Remove(name string) error {
	return c.call(Remove, name, func(int) error {
		dir, base, err := c.d.parent(name)
		if err != nil {
			return err
		}
		if err := c.d.scan(dir); err != nil {
			return err
		}
		if err := os.Remove(name); err != nil {
			return err
		}
		n := dir.live[base]
		delete(dir.live, base)
		c.d.ops = append(c.d.ops, op{kind: opUnlink, dir: dir, name: base, node: n})
		return nil
	})
}

func (c *CrashFS) SyncDir(dir string) error {
	return c.call(SyncDir, dir, func(int) error {
		r, err := c.d.rel(dir)
		if err != nil {
			return err
		}
		n, err := c.d.lookupDir(r)
		if err != nil {
			return err
		}
		return c.d.syncDir(n)
	})
}

func (c *CrashFS) Lock(name string) (l io.Closer, err error) {
	err = c.call(Lock, name, func(int) error {
		if c.locked[name] {
			return fmt.Errorf("lock %s: another process has this directory open", name)
		}
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		f.Close()
		c.locked[name] = true
		_, err = c.d.opened(name)
		l = unlock(func() error {
			c.d.mu.Lock()
			defer c.d.mu.Unlock()
			delete(c.locked, name)
			return nil
		})
		return err
	})
	return l, err
}

type unlock func() error

func (u unlock) Close() error { return u() }

func (c *CrashFS) Free(dir string) (free int64, err error) {
	err = c.call(Free, dir, func(int) (err error) {
		if free = c.free; free < 0 {
			free, err = durable.OS{}.Free(dir)
		}
		return err
	})
	return free, err
}

// file is an open file of a CrashFS.
type file struct {
	c      *CrashFS
	f      *os.File
	n      *node
	append bool
}

// Close always closes the descriptor, also when the power is off.
func (f *file) Close() error { return f.f.Close() }

func (f *file) Read(b []byte) (n int, err error) {
	err = f.c.call(Read, f.f.Name(), func(int) (err error) { n, err = f.f.Read(b); return err })
	return n, err
}

func (f *file) ReadAt(b []byte, off int64) (n int, err error) {
	err = f.c.call(Read, f.f.Name(), func(int) (err error) {
		good := f.n.readable(off, len(b))
		if n, err = f.f.ReadAt(b[:good], off); err == nil && good < len(b) {
			err = syscall.EIO
		}
		return err
	})
	return n, err
}

func (f *file) Write(b []byte) (n int, err error) {
	err = f.c.call(Write, f.f.Name(), func(short int) error {
		if short >= 0 {
			b = b[:min(short, len(b))]
		}
		off := int64(0)
		if f.append {
			fi, err := f.f.Stat()
			if err != nil {
				return err
			}
			off = fi.Size()
		} else if off, err = f.f.Seek(0, io.SeekCurrent); err != nil {
			return err
		}
		if err := f.n.overwriting(off, int64(len(b))); err != nil {
			return err
		}
		n, err = f.f.Write(b)
		f.n.written(off, int64(n))
		return err
	})
	return n, err
}

// syncFails is given to the action of Sync, in place of a length, when it is to fail.
const syncFails = 0

func (f *file) Sync() error {
	return f.c.call(Sync, f.f.Name(), func(how int) error {
		if how == syncFails {
			f.n.syncFailed()
			return nil
		}
		return f.n.sync()
	})
}

func (f *file) Truncate(size int64) error {
	return f.c.call(Truncate, f.f.Name(), func(int) error {
		if err := f.n.overwriting(size, 1<<62-size); err != nil {
			return err
		}
		f.n.cutLost(size)
		return f.f.Truncate(size)
	})
}

func (f *file) Stat() (fi fs.FileInfo, err error) {
	err = f.c.call(Stat, f.f.Name(), func(int) (err error) { fi, err = f.f.Stat(); return err })
	return fi, err
}

// Pending lists the entry changes that no directory fsync has made durable yet.
func (c *CrashFS) Pending() []string {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	var out []string
	for _, o := range c.d.ops {
		out = append(out, o.String())
	}
	return out
}
