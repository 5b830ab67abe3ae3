package edge

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// activated returns the name of a socket that systemd opens for us.
func activated(address string) (name string, ok bool) { return strings.CutPrefix(address, "systemd:") }

// inherited are the sockets that systemd has passed (sd_listen_fds(3)): descriptors
// from 3 on, their names in LISTEN_FDNAMES. Each is used once.
type inherited struct {
	mu    sync.Mutex
	files map[string][]*os.File
}

// inheritedSockets reads the environment and clears it, so that no child of ours takes
// the sockets for its own.
func inheritedSockets(env func(string) string) *inherited {
	in := &inherited{files: map[string][]*os.File{}}
	n, err := strconv.Atoi(env("LISTEN_FDS"))
	if err != nil || n < 1 || n > 1000 || env("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return in
	}
	names := strings.Split(env("LISTEN_FDNAMES"), ":")
	for i := range n {
		name := "unknown" // as systemd calls a socket without a name
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		in.files[name] = append(in.files[name], os.NewFile(uintptr(3+i), name))
	}
	for _, v := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		os.Unsetenv(v)
	}
	return in
}

// listen takes the next socket of a name.
func (in *inherited) listen(name string) (net.Listener, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	fs := in.files[name]
	if len(fs) == 0 {
		return nil, fmt.Errorf("systemd has passed no socket %q (passed: %s); it needs FileDescriptorName=%s in the .socket unit", name, strings.Join(in.names(), ", "), name)
	}
	in.files[name] = fs[1:]
	defer fs[0].Close() // FileListener has a copy
	l, err := net.FileListener(fs[0])
	if err != nil {
		return nil, fmt.Errorf("socket %q of systemd: %w", name, err)
	}
	return l, nil
}

func (in *inherited) names() []string {
	var out []string
	for n, fs := range in.files {
		if len(fs) > 0 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	if out == nil {
		out = []string{"none"}
	}
	return out
}

// closeUnused closes what no listener has asked for, and says so.
func (in *inherited) closeUnused() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	var errs []error
	for n, fs := range in.files {
		for _, f := range fs {
			errs = append(errs, fmt.Errorf("systemd passes a socket %q that no mqtt listener uses", n))
			f.Close()
		}
	}
	clear(in.files)
	return errors.Join(errs...)
}

// reachable reports whether others may reach the listener: only now is the address of
// an inherited socket known.
func reachable(l net.Listener) bool {
	switch a := l.Addr().(type) {
	case *net.TCPAddr:
		return !a.IP.IsLoopback()
	case *net.UnixAddr:
		return false
	}
	return true
}
