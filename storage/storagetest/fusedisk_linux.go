//go:build !arm

// go-fuse does not build for 32-bit ARM.

package storagetest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// FuseDisk is a file in user space that stands for a disk: a loop device lies on it, and a
// file system on that. The functions, which may be nil, are asked before a call has its
// effect, one at a time.
type FuseDisk struct {
	Read  func(off int64, n int) syscall.Errno
	Write func(off int64, b []byte) syscall.Errno
	Flush func()

	fusefs.Inode
	mu   sync.Mutex
	data []byte
}

// MountFuseDisk shows the disk as a file in dir, which is made. Its content is data, which is
// the disk's from now on.
func MountFuseDisk(dir string, data []byte, d *FuseDisk) (path string, unmount func() error, err error) {
	d.data = data
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	opts := &fusefs.Options{}
	opts.DirectMountStrict, opts.FsName, opts.DisableXAttrs = true, "fusedisk", true
	server, err := fusefs.Mount(dir, &fuseRoot{disk: d}, opts)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(dir, "disk"), server.Unmount, nil
}

type fuseRoot struct {
	fusefs.Inode
	disk *FuseDisk
}

func (r *fuseRoot) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, r.disk, fusefs.StableAttr{Mode: fuse.S_IFREG}), false)
}

type fuseFile struct{ d *FuseDisk }

// Getattr, Setattr and Open are fusefs's.
func (d *FuseDisk) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Size, out.Mode = uint64(len(d.data)), fuse.S_IFREG|0o600
	return 0
}

// Setattr changes nothing.
func (d *FuseDisk) Setattr(ctx context.Context, f fusefs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return d.Getattr(ctx, f, out)
}

// Open keeps the kernel from caching what the disk holds.
func (d *FuseDisk) Open(context.Context, uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	return fuseFile{d}, fuse.FOPEN_DIRECT_IO, 0
}

func (f fuseFile) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if off >= int64(len(d.data)) {
		return fuse.ReadResultData(nil), 0
	}
	end := min(off+int64(len(dest)), int64(len(d.data)))
	if d.Read != nil {
		if e := d.Read(off, int(end-off)); e != 0 {
			return nil, e
		}
	}
	return fuse.ReadResultData(bytes.Clone(d.data[off:end])), 0
}

func (f fuseFile) Write(_ context.Context, b []byte, off int64) (uint32, syscall.Errno) {
	d := f.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if off+int64(len(b)) > int64(len(d.data)) {
		return 0, syscall.EFBIG
	}
	if d.Write != nil {
		if e := d.Write(off, b); e != 0 {
			return 0, e
		}
	}
	copy(d.data[off:], b)
	return uint32(len(b)), 0
}

func (f fuseFile) Fsync(context.Context, uint32) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.Flush != nil {
		f.d.Flush()
	}
	return 0
}
