package storagetest

import (
	"os"
	"testing"
)

// CannotMount ends a test that needs a mount of its own: why says what was missing. For an
// ordinary user the test is skipped. As root it fails, since there the mount must work (CI
// runs as root), unless TAILRACE_NO_MOUNT=1 says that it need not.
func CannotMount(t testing.TB, format string, why ...any) {
	t.Helper()
	if os.Geteuid() == 0 && os.Getenv("TAILRACE_NO_MOUNT") != "1" {
		t.Logf(format, why...)
		t.Fatal("as root this must work; to go without this test set TAILRACE_NO_MOUNT=1")
	}
	t.Logf(format, why...)
	t.Skip("NOT TESTED: needs root and mounts (or TAILRACE_NO_MOUNT=1 is set)")
}
