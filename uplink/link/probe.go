package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// While a node has no working connection it asks every ClientConfig.Probe whether the
// path is back, with a packet that costs the hub no state:
//
//	0x21 'T' 'R' 1 | kind u8: 0 ask, 1 answer | nonce 8 | boot 16 | spread u32 ms | busy u8 | zeros to 40
//
// A QUIC packet has bit 0x40 of its first byte set (RFC 9443), this one has not. The
// answer is as long as the question, which may be longer with more zeros: nothing is amplified. It is a hint only, anyone
// can forge it: it makes a node dial now what it would have dialled later. The boot id,
// which Welcome named too, tells an outage of the link (dial at once) from a restart of
// the hub (every node of the fleet notices: dial within spread). A hub that is busy would refuse a handshake now: the
// node comes again later, and asks again before.
const (
	probeBytes = 40
)

var probeMagic = []byte{0x21, 'T', 'R', 1}

const (
	probeAsk    = 0
	probeAnswer = 1
)

type pathUp struct {
	boot   wire.ID
	spread time.Duration
	busy   bool
	missed int // probes without an answer before this one
}

// answerProbes answers until ctx ends.
func (s *Server) answerProbes(ctx context.Context, tr *quic.Transport) {
	var b [1500]byte
	for {
		n, from, err := tr.ReadNonQUICPacket(ctx, b[:])
		if err != nil {
			return
		}
		if p := b[:n]; n >= probeBytes && bytes.HasPrefix(p, probeMagic) && p[4] == probeAsk {
			p[4] = probeAnswer
			copy(p[13:29], s.boot[:])
			binary.BigEndian.PutUint32(p[29:], uint32(s.cfg.RestartSpread.Milliseconds()))
			if p[33] = 0; s.door.busy() {
				p[33] = 1
			}
			tr.WriteTo(p, from) // a lost answer is asked for again
		}
	}
}

// probePath asks until ctx ends or an answer came; the channel has room for it.
func probePath(ctx context.Context, tr *quic.Transport, to net.Addr, every time.Duration, rng *rand.Rand, count ...*traffic) <-chan pathUp {
	if every < 0 {
		return nil
	}
	up := make(chan pathUp, 1)
	first := rng.Uint64()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		t := time.NewTicker(every)
		defer t.Stop()
		for i := uint64(0); ; i++ {
			var p [probeBytes]byte
			copy(p[:], probeMagic)
			binary.BigEndian.PutUint64(p[5:], first+i)
			if _, err := tr.WriteTo(p[:], to); err != nil {
				return
			}
			for _, t := range count {
				t.add(probeOnALink)
			}
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
	}()
	go func() {
		defer cancel()
		var b [1500]byte
		for {
			n, _, err := tr.ReadNonQUICPacket(ctx, b[:])
			if err != nil {
				return
			}
			p := b[:n]
			if n != probeBytes || !bytes.HasPrefix(p, probeMagic) || p[4] != probeAnswer {
				continue
			}
			missed := binary.BigEndian.Uint64(p[5:]) - first
			if missed > 1<<32 {
				continue // the answer to an older question
			}
			a := pathUp{missed: int(missed), spread: min(time.Duration(binary.BigEndian.Uint32(p[29:]))*time.Millisecond, time.Minute), busy: p[33] == 1}
			copy(a.boot[:], p[13:29])
			up <- a
			return
		}
	}()
	return up
}
