package firmwaresim

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// talkNonsense is a broken device: connection after connection, each with one
// kind of rubbish. It never looks at the answers; the fleet around it must not notice.
func (f *Fleet) talkNonsense(ctx context.Context, d *Device) {
	rng := rngOf(f.c.Seed, "nonsense", d.ID)
	for ctx.Err() == nil {
		f.spoil(ctx, d, rng)
		wait := time.Duration(rng.ExpFloat64() * float64(d.Interval) / min(f.c.Pace, 100))
		select {
		case <-time.After(min(wait, time.Minute)):
		case <-ctx.Done():
		}
	}
}

func (f *Fleet) spoil(ctx context.Context, d *Device, rng *rand.Rand) {
	conn, err := f.c.Dial(ctx)
	if err != nil {
		f.n.connectFails.Add(1)
		return
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	deaf := make(chan struct{})
	defer func() { conn.Close(); <-deaf }()
	go func() { // answers are read and thrown away, until the connection ends
		defer close(deaf)
		buf := make([]byte, 512)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	}()
	f.n.nonsense.Add(1)
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	for _, piece := range Spoiled(d.ClientID(), rng) {
		if _, err := conn.Write(piece); err != nil {
			return // the server has had enough
		}
	}
	// Some stay a while without a word.
	if rng.IntN(4) == 0 {
		select {
		case <-time.After(time.Duration(rng.Int64N(int64(3 * time.Second)))):
		case <-ctx.Done():
		}
	}
}

// Spoiled makes what a broken device writes on one connection, drawn from rng:
// garbage before login, malformed packets of every kind after it, lying lengths,
// and well-formed publishes of random bytes below "nonsense/<clientID>/". It is
// also a source for tests of decoders.
func Spoiled(clientID string, rng *rand.Rand) [][]byte {
	str := func(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }
	packet := func(typ byte, body ...[]byte) []byte {
		var b []byte
		for _, p := range body {
			b = append(b, p...)
		}
		n, out := len(b), []byte{typ}
		for ; n >= 0x80; n >>= 7 {
			out = append(out, byte(n)|0x80)
		}
		return append(append(out, byte(n)), b...)
	}
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	version := []byte{4, 5}[rng.IntN(2)]
	var props []byte
	if version == 5 {
		props = []byte{0}
	}
	connect := packet(0x10, str("MQTT"), []byte{version, 2, 0, 30}, props, str(clientID))
	publish := func(flags byte, topic string, payload []byte) []byte {
		var id []byte
		if flags&6 != 0 {
			id = []byte{0, 7}
		}
		return packet(0x30|flags, str(topic), id, props, payload)
	}
	kinds := []func() [][]byte{
		// Before login.
		func() [][]byte { return [][]byte{random(1 + rng.IntN(300))} },
		func() [][]byte { return [][]byte{[]byte("GET / HTTP/1.1\r\nHost: plc\r\n\r\n")} },
		func() [][]byte { return [][]byte{{0x10, 0xff, 0xff, 0xff, 0x7f}, random(40)} },     // 256 MB announced
		func() [][]byte { return [][]byte{{0x10, 0xff, 0xff, 0xff, 0xff, 0x01}} },           // five length bytes
		func() [][]byte { return [][]byte{connect[:1+rng.IntN(len(connect)-1)]} },           // unfinished
		func() [][]byte { return [][]byte{publish(0, "nonsense/"+clientID+"/early", nil)} }, // no CONNECT
		func() [][]byte { return [][]byte{packet(0x10, str("MQTT"), []byte{9, 0xff, 0, 0}, str(""))} },
		func() [][]byte { return [][]byte{packet(0x10, str("MQIsdp"), []byte{3, 2, 0, 0}, str(clientID))} },
		func() [][]byte { return nil }, // connects, says nothing
		// After it.
		func() [][]byte { return [][]byte{connect, connect} },
		func() [][]byte { return [][]byte{connect, {0x20, 2, 0, 0}} },               // CONNACK from a client
		func() [][]byte { return [][]byte{connect, {0x82, 6, 0, 1, 0, 0, 1, 'x'}} }, // SUBSCRIBE without its options byte
		func() [][]byte { return [][]byte{connect, {0x80, 6, 0, 1, 0, 1, 'x', 0}} }, // reserved flags wrong
		func() [][]byte { return [][]byte{connect, {0x00, 0}} },
		func() [][]byte { return [][]byte{connect, {0xf0, byte(rng.Uint32() & 0x7f)}, random(20)} },
		func() [][]byte { return [][]byte{connect, publish(6, "nonsense/"+clientID+"/qos3", random(10))} },
		func() [][]byte { return [][]byte{connect, publish(2, "nonsense/+/wild/#", random(10))} },
		func() [][]byte { return [][]byte{connect, publish(2, "nonsense/\xff\xfe\x00", random(10))} },
		func() [][]byte { return [][]byte{connect, publish(0, "", random(10))} },
		func() [][]byte {
			return [][]byte{connect, packet(0x32, str("nonsense/"+clientID+"/id0"), []byte{0, 0}, props)}
		},
		func() [][]byte { return [][]byte{connect, {0x30, 0x7f, 0xff, 0xff}, random(30)} }, // topic longer than the packet
		func() [][]byte { return [][]byte{connect, {0x62, 2, 0, 9}, {0x40, 2, 0, 9}, {0x70, 2, 0, 9}} },
		func() [][]byte {
			return [][]byte{connect, publish(0, "nonsense/"+clientID+"/random", random(rng.IntN(600)))}
		},
		func() [][]byte {
			return [][]byte{connect, publish(2, "nonsense/"+clientID+"/json", []byte(`{"ts":"yesterday","seq":-1,"boot":[`)), {0xe0, 0}}
		},
		func() [][]byte { // a valid login, a byte at a time
			var out [][]byte
			for i := range connect {
				out = append(out, connect[i:i+1])
			}
			return append(out, random(3))
		},
	}
	return kinds[rng.IntN(len(kinds))]()
}
