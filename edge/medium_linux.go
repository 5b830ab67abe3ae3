package edge

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mediumOf finds the device below dir, or below its nearest existing parent.
func mediumOf(dir string) medium {
	for {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err == nil {
			return detectMedium("/sys", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)))
		} else if !os.IsNotExist(err) || dir == filepath.Dir(dir) {
			return medium{Kind: "unknown"}
		}
		dir = filepath.Dir(dir)
	}
}

// freeBytes is what is left on the file system for this process.
func freeBytes(dir string) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true
}

// amplifying names a file system that writes a multiple of what it is given, at every
// fsync; "" for others. An upper directory hides what is below (overlay).
func amplifying(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return ""
	}
	switch uint32(st.Type) {
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case 0x2fc12fc1:
		return "zfs"
	case 0xca451a4e:
		return "bcachefs"
	case unix.NILFS_SUPER_MAGIC:
		return "nilfs2"
	}
	return ""
}

// volatile names a file system on which an fsync does not reach anything that
// survives a power cut, or may not; "" when there is no reason to think so.
func volatile(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return ""
	}
	switch uint32(st.Type) {
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.RAMFS_MAGIC:
		return "ramfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	}
	return ""
}
