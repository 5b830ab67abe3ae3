package linktest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tun joins two network namespaces by a link in real time: a TUN interface, tun0, in each, and this process
// between them with rate, delay, queue and losses. All IP traffic takes it. It needs root.
type Tun struct {
	dirs  [2]*tunDir // up (edge to hub), down
	files [2]*os.File
}

type tunDir struct {
	in, out *os.File
	ch      chan tunPacket

	mu   sync.Mutex
	path Path
	down bool
	rng  *rand.Rand
}

type tunPacket struct {
	at time.Time
	b  []byte
}

// NewTun makes the interfaces in namespaces that `ip netns add` made, and carries packets until Close.
func NewTun(edge, hub string, rng *rand.Rand) (*Tun, error) {
	t := &Tun{}
	for i, ns := range []string{edge, hub} {
		f, err := openTun(ns)
		if err != nil {
			t.Close()
			return nil, fmt.Errorf("tun0 in namespace %s: %w", ns, err)
		}
		t.files[i] = f
	}
	for i := range t.dirs {
		d := &tunDir{in: t.files[i], out: t.files[1-i], ch: make(chan tunPacket, 1<<16), rng: rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))}
		t.dirs[i] = d
		go d.read()
		go d.write()
	}
	return t, nil
}

func openTun(ns string) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	ch := make(chan opened)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine, its namespace with it
		f, err := func() (*os.File, error) {
			nfd, err := unix.Open("/var/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			defer unix.Close(nfd)
			if err := unix.Setns(nfd, unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			var ifr [40]byte
			copy(ifr[:], "tun0")
			*(*uint16)(unsafe.Pointer(&ifr[16])) = unix.IFF_TUN | unix.IFF_NO_PI
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&ifr[0]))); e != 0 {
				unix.Close(fd)
				return nil, e
			}
			if err := unix.SetNonblock(fd, true); err != nil {
				unix.Close(fd)
				return nil, err
			}
			return os.NewFile(uintptr(fd), "tun0"), nil
		}()
		ch <- opened{f, err}
	}()
	o := <-ch
	return o.f, o.err
}

// Set sets one direction, or both. Jitter is not supported here.
func (t *Tun) Set(up, down Path) {
	for i, p := range []Path{up, down} {
		d := t.dirs[i]
		d.mu.Lock()
		d.path = p
		d.mu.Unlock()
	}
}

// Down cuts or restores both directions.
func (t *Tun) Down(down bool) {
	for _, d := range t.dirs {
		d.mu.Lock()
		d.down = down
		d.mu.Unlock()
	}
}

// Close ends the link.
func (t *Tun) Close() {
	for _, f := range t.files {
		if f != nil {
			f.Close()
		}
	}
}

func (d *tunDir) read() {
	defer close(d.ch)
	buf, free := make([]byte, 65536), time.Now()
	for {
		n, err := d.in.Read(buf)
		if err != nil {
			return
		}
		now := time.Now()
		d.mu.Lock()
		p, down := d.path, d.down
		lost := p.Loss > 0 && d.rng.Float64() < p.Loss
		d.mu.Unlock()
		if down || p.MTU > 0 && n > p.MTU {
			continue
		}
		if free.Before(now) {
			free = now
		}
		if p.Rate > 0 {
			if p.Queue > 0 && int(free.Sub(now).Seconds()*p.Rate/8)+n > p.Queue {
				continue
			}
			free = free.Add(time.Duration(float64(n) * 8e9 / p.Rate))
		}
		if lost {
			continue
		}
		select {
		case d.ch <- tunPacket{free.Add(p.Delay), append([]byte(nil), buf[:n]...)}:
		default:
		}
	}
}

func (d *tunDir) write() {
	for p := range d.ch {
		time.Sleep(time.Until(p.at))
		d.mu.Lock()
		down := d.down
		d.mu.Unlock()
		if !down {
			if _, err := d.out.Write(p.b); err != nil {
				continue // the interface is down
			}
		}
	}
}
