package hub

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"tailrace/uplink"
	"tailrace/uplink/wire"
)

// streamKey names an origin as state keys do: node/epoch/topic/partition. The
// parts hold no "/" (checked by validName before anything is stored).
type streamKey struct {
	node      string
	epoch     wire.ID
	topic     string
	partition int
}

func keyOf(o wire.Origin) streamKey { return streamKey{o.Node, o.Epoch, o.Topic, o.Partition} }

func (k streamKey) origin() wire.Origin {
	return wire.Origin{Node: k.node, Epoch: k.epoch, Topic: k.topic, Partition: k.partition}
}

func (k streamKey) String() string {
	return k.node + "/" + k.epoch.String() + "/" + k.topic + "/" + strconv.Itoa(k.partition)
}

func parseStreamKey(s string) (k streamKey, err error) {
	parts := strings.Split(s, "/")
	if len(parts) != 4 {
		return k, fmt.Errorf("progress key %q: want node/epoch/topic/partition", s)
	}
	k.node, k.topic = parts[0], parts[2]
	if k.epoch, err = parseID(parts[1]); err != nil {
		return k, fmt.Errorf("progress key %q: %w", s, err)
	}
	if k.partition, err = strconv.Atoi(parts[3]); err != nil {
		return k, fmt.Errorf("progress key %q: %w", s, err)
	}
	return k, nil
}

func parseID(s string) (id wire.ID, err error) {
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("id %q has not %d hexadecimal digits", s, 2*len(id))
	}
	for i := range id {
		n, err := strconv.ParseUint(s[2*i:2*i+2], 16, 8)
		if err != nil {
			return id, fmt.Errorf("id %q: %w", s, err)
		}
		id[i] = byte(n)
	}
	return id, nil
}

// progressValue is the value of a KindProgress entry. It is on disk for good:
// fields are added, never renumbered.
type progressValue struct {
	Held       uplink.RangeSet `cbor:"1,keyasint"`
	LastOffset int64           `cbor:"2,keyasint"` // base offset of the highest batch stored, as the node stored it; -1 = none
	LastCRC    uint32          `cbor:"3,keyasint"`
	MaxTime    int64           `cbor:"4,keyasint,omitempty"`
	Stored     int64           `cbor:"5,keyasint,omitempty"`
	BackNext   int64           `cbor:"6,keyasint,omitempty"` // one past the last offset stored in the companion topic
	Backfilled int64           `cbor:"7,keyasint,omitempty"` // of Stored, in the companion topic
}

// encode appends what saved.Encode makes of v, without its reflection: it is written with every
// append of an origin.
func (v *progressValue) encode(dst []byte) []byte {
	fields := byte(3)
	for _, n := range []int64{v.MaxTime, v.Stored, v.BackNext, v.Backfilled} {
		if n != 0 {
			fields++
		}
	}
	dst = append(dst, 0xa0|fields, 1)
	dst = cborHead(dst, 4, uint64(2*len(v.Held)))
	var end int64
	for _, r := range v.Held {
		dst = cborHead(cborHead(dst, 0, uint64(r.From-end)), 0, uint64(r.To-r.From))
		end = r.To
	}
	dst = cborInt(append(dst, 2), v.LastOffset)
	dst = cborHead(append(dst, 3), 0, uint64(v.LastCRC))
	for i, n := range []int64{v.MaxTime, v.Stored, v.BackNext, v.Backfilled} {
		if n != 0 {
			dst = cborInt(append(dst, byte(4+i)), n)
		}
	}
	return dst
}

func cborInt(dst []byte, n int64) []byte {
	if n < 0 {
		return cborHead(dst, 1, uint64(^n))
	}
	return cborHead(dst, 0, uint64(n))
}

// cborHead appends the head of an item in its shortest form.
func cborHead(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, major|27), n)
}

// assignKey names a node's partition, across its epochs.
type assignKey struct {
	node, topic string
	partition   int
}

func (k assignKey) String() string { return k.node + "/" + k.topic + "/" + strconv.Itoa(k.partition) }

func parseAssignKey(s string) (k assignKey, err error) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return k, fmt.Errorf("assignment key %q: want node/topic/partition", s)
	}
	k.node, k.topic = parts[0], parts[1]
	if k.partition, err = strconv.Atoi(parts[2]); err != nil {
		return k, fmt.Errorf("assignment key %q: %w", s, err)
	}
	return k, nil
}

// validName says whether s may be a node id or a topic: Kafka's rule for topic names.
func validName(s string) bool {
	if s == "" || len(s) > wire.MaxNameBytes || s == "." || s == ".." {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}
