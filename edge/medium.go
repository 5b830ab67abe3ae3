package edge

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// medium says what kind of device a directory lies on, as far as the system tells.
type medium struct {
	Device string // "mmcblk0", "nvme0n1"; "" unknown
	Kind   string // "sd", "emmc", "nvme", "ssd", "disk", "unknown"
}

// commitInterval is the default by medium: an fsync costs an SD card or eMMC a
// flash page and 20 to 142 device bytes per payload byte, an SSD next to nothing.
func (m medium) commitInterval() time.Duration {
	if m.Kind == "sd" || m.Kind == "emmc" {
		return 100 * time.Millisecond
	}
	return 0
}

// detectMedium follows /sys/dev/block/MAJ:MIN of the directory's device. sys is
// the root of sysfs (a parameter for the tests).
func detectMedium(sys string, major, minor uint32) medium {
	link := filepath.Join(sys, "dev", "block", strconv.Itoa(int(major))+":"+strconv.Itoa(int(minor)))
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return medium{Kind: "unknown"} // tmpfs, overlay, network, or no sysfs
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir) // a partition's directory lies in its disk's
	}
	m := medium{Device: filepath.Base(dir), Kind: "unknown"}
	switch {
	case strings.HasPrefix(m.Device, "mmcblk"):
		m.Kind = "sd"
		if t, err := os.ReadFile(filepath.Join(dir, "device", "type")); err == nil && strings.TrimSpace(string(t)) == "MMC" {
			m.Kind = "emmc"
		}
	case strings.HasPrefix(m.Device, "nvme"):
		m.Kind = "nvme"
	default:
		switch r, _ := os.ReadFile(filepath.Join(dir, "queue", "rotational")); strings.TrimSpace(string(r)) {
		case "0":
			m.Kind = "ssd"
		case "1":
			m.Kind = "disk"
		}
	}
	return m
}

// sectorsWritten reads how many 512-byte sectors the whole disk has written, from
// /sys/block/DEV/stat (the 7th field). This is what the flash sees: /proc/self/io
// misses the journal. False when unknown.
func (m medium) sectorsWritten(sys string) (int64, bool) {
	if m.Device == "" {
		return 0, false
	}
	b, err := os.ReadFile(filepath.Join(sys, "block", m.Device, "stat"))
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(b))
	if len(f) < 7 {
		return 0, false
	}
	n, err := strconv.ParseInt(f[6], 10, 64)
	return n, err == nil
}
