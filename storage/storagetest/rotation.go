package storagetest

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// Rotation is a number that differs from commit to commit. Tests whose short form is a
// sample of a larger set use it to choose the sample, so that every commit looks at
// another part. TAILRACE_ROTATE repeats the choice of an earlier run.
func Rotation() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("TAILRACE_ROTATE"), 10, 64); err == nil {
		return n
	}
	out, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if hash := strings.TrimSpace(string(out)); err == nil && len(hash) >= 8 {
		n, _ := strconv.ParseUint(hash[:8], 16, 64)
		return n
	}
	return 0 // a source archive: always the same part
}
