package storagetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sort"

	"github.com/fxamacker/cbor/v2"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The oracle is a second reader of a log directory, written from storage/FORMAT.md and
// the Kafka protocol only. It shares no code with package storage, knows no index and no
// cache, reads everything into memory, and says what a healthy store must say.

// OracleLog is what one commit log holds.
type OracleLog struct {
	Dir     string
	Entries []OracleEntry
	// Records by partition id, in log order, those below a start offset included.
	Records map[uint32][]OracleRecord
	// Cut is how many bytes follow the last complete commit.
	Cut int64
	// Problems are contradictions in what was read: none in a healthy log.
	Problems []string
}

// OracleStore is what a store's directory holds.
type OracleStore struct {
	Logs map[string]*OracleLog // by class
	// Topics by name: partition ids by partition number.
	Topics map[string][]uint32
	// Start offsets by partition id.
	Starts map[uint32]int64
	// State as set: kind, then key. What was folded into a key is in Folded: the value it
	// was last set to (nil when it never was), then the deltas since, oldest first.
	State  map[byte]map[string][]byte
	Folded map[byte]map[string][][]byte
}

// ReadStore reads all logs of a directory that no store has open.
func ReadStore(dir string) (*OracleStore, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	s := &OracleStore{Logs: map[string]*OracleLog{}, Topics: map[string][]uint32{}, Starts: map[uint32]int64{}, State: map[byte]map[string][]byte{}, Folded: map[byte]map[string][][]byte{}}
	for _, e := range list {
		if !e.IsDir() {
			continue
		}
		l, err := ReadLog(filepath.Join(dir, e.Name(), "log"))
		if err != nil {
			return nil, err
		}
		s.Logs[e.Name()] = l
		if err := s.replay(l); err != nil {
			return nil, fmt.Errorf("class %s: %w", e.Name(), err)
		}
	}
	return s, nil
}

// replay applies the state entries of a log.
func (s *OracleStore) replay(l *OracleLog) error {
	for _, e := range l.Entries {
		if e.Kind != kindState {
			continue
		}
		for b := e.Payload; len(b) > 0; {
			if len(b) < 2 {
				return fmt.Errorf("entry %d: cut operation", e.Index)
			}
			kind, operation := b[0], b[1]
			key, rest, ok := oracleBytes(b[2:])
			value, rest, ok2 := oracleBytes(rest)
			if !ok || !ok2 {
				return fmt.Errorf("entry %d: cut operation", e.Index)
			}
			b = rest
			if err := s.apply(kind, operation, string(key), value); err != nil {
				return fmt.Errorf("entry %d: %w", e.Index, err)
			}
		}
	}
	return nil
}

func oracleBytes(b []byte) (field, rest []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) {
		return nil, nil, false
	}
	return b[k : k+int(n)], b[k+int(n):], true
}

func (s *OracleStore) apply(kind, operation byte, key string, value []byte) error {
	if s.State[kind] == nil {
		s.State[kind], s.Folded[kind] = map[string][]byte{}, map[string][][]byte{}
	}
	switch operation {
	case 0:
		delete(s.State[kind], key)
		delete(s.Folded[kind], key)
		if kind == kindTopic {
			delete(s.Topics, key)
		}
		return nil
	case 1:
		s.State[kind][key] = value
		s.Folded[kind][key] = [][]byte{value}
	case 2:
		if s.Folded[kind][key] == nil {
			s.Folded[kind][key] = [][]byte{nil}
		}
		s.Folded[kind][key] = append(s.Folded[kind][key], value)
		return nil
	default:
		return nil
	}
	switch kind {
	case kindTopic:
		var t struct {
			IDs []uint32 `cbor:"2,keyasint"`
		}
		if err := cbor.Unmarshal(value, &t); err != nil {
			return fmt.Errorf("topic %s: %w", key, err)
		}
		s.Topics[key] = t.IDs
	case kindStart:
		if len(key) != 4 || len(value) != 8 {
			return fmt.Errorf("start offset of %x: %x", key, value)
		}
		s.Starts[binary.BigEndian.Uint32([]byte(key))] = int64(binary.BigEndian.Uint64(value))
	}
	return nil
}

// Partition returns the records of a topic's partition from its start on.
func (s *OracleStore) Partition(topic string, index int) []OracleRecord {
	ids := s.Topics[topic]
	if index >= len(ids) {
		return nil
	}
	var out []OracleRecord
	for _, l := range s.Logs {
		for _, r := range l.Records[ids[index]] {
			if r.Offset >= s.Starts[ids[index]] {
				out = append(out, r)
			}
		}
	}
	return out
}

// OracleEntry is one entry of the log. One of packed data or state (kinds 4 and 5) is given
// as if it had not been packed (1 and 2).
type OracleEntry struct {
	Kind, Flags byte
	Epoch       int32
	Index       uint64
	Commit      uint64
	Time        int64
	Partition   uint32
	Origin      []byte
	Payload     []byte
}

// OracleRecord is one record of a partition.
type OracleRecord struct {
	Offset    int64
	Timestamp int64
	Epoch     int32
	Key       []byte
	Value     []byte
	Headers   []kmsg.Header
}

const (
	oracleEnvelope = 48
	flagLast       = 2

	kindData        = 1
	kindState       = 2
	kindPackedData  = 4
	kindPackedState = 5

	kindTopic = 1 // kinds of state
	kindStart = 2
)

var oracleCRC = crc32.MakeTable(crc32.Castagnoli)

// ReadLog reads the segments in dir as recovery must see them: the last run of segments
// without a hole, up to the last complete commit.
func ReadLog(dir string) (*OracleLog, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		if isSegment(e.Name()) {
			names = append(names, e.Name())
		}
	}
	sort.Strings(names)
	l := &OracleLog{Dir: dir, Records: map[uint32][]OracleRecord{}}
	type item struct {
		e    OracleEntry
		size int64
	}
	var all []item
	next := uint64(0)
	for i, name := range names {
		var first uint64
		if _, err := fmt.Sscanf(name, "%020d", &first); err != nil {
			return nil, err
		}
		if next != 0 && first != next { // a hole: only what comes after it counts
			all, l.Cut = nil, 0
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		next = first
		for len(b) > 0 {
			e, n, err := oracleEntry(b)
			if err != nil {
				if i != len(names)-1 {
					l.problem("segment %s, entry %d: %v, and segments follow", name, next, err)
				}
				l.Cut += int64(len(b))
				break
			}
			if e.Index != next {
				l.problem("segment %s: entry %d says it is %d", name, next, e.Index)
			}
			all = append(all, item{e, int64(n)})
			b, next = b[n:], next+1
		}
	}
	end := len(all)
	for end > 0 && all[end-1].e.Flags&flagLast == 0 {
		end--
		l.Cut += all[end].size
	}
	for _, it := range all[:end] {
		l.Entries = append(l.Entries, it.e)
	}
	l.check()
	return l, nil
}

func (l *OracleLog) problem(format string, args ...any) {
	if len(l.Problems) < 20 {
		l.Problems = append(l.Problems, fmt.Sprintf(format, args...))
	}
}

// oracleEntry reads one entry and its frame.
func oracleEntry(b []byte) (OracleEntry, int, error) {
	var e OracleEntry
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) || size < oracleEnvelope {
		return e, 0, errors.New("torn frame")
	}
	x := b[n : n+int(size)]
	if x[0] != 'T' || x[1] != 'R' || x[2] != 1 {
		return e, 0, errors.New("no envelope")
	}
	sum := crc32.Update(crc32.Checksum(x[:8], oracleCRC), oracleCRC, x[12:])
	if sum != binary.BigEndian.Uint32(x[8:]) {
		return e, 0, errors.New("checksum of the envelope")
	}
	origin, payload := uint64(binary.BigEndian.Uint16(x[6:])), uint64(binary.BigEndian.Uint32(x[44:]))
	if oracleEnvelope+origin+payload != size {
		return e, 0, errors.New("lengths of the envelope")
	}
	e = OracleEntry{
		Kind: x[3], Flags: x[4], Epoch: int32(binary.BigEndian.Uint32(x[12:])),
		Index: binary.BigEndian.Uint64(x[16:]), Commit: binary.BigEndian.Uint64(x[24:]), Time: int64(binary.BigEndian.Uint64(x[32:])),
		Partition: binary.BigEndian.Uint32(x[40:]),
		Origin:    x[oracleEnvelope : oracleEnvelope+origin], Payload: x[oracleEnvelope+origin:],
	}
	var err error
	switch e.Kind {
	case kindPackedData:
		e.Kind = kindData
		e.Payload, err = oracleUnpack(e.Payload, e.Epoch)
	case kindPackedState:
		e.Kind = kindState
		block, rest, ok := oracleBytes(e.Payload)
		if !ok {
			return e, 0, errors.New("length of packed state")
		}
		e.Payload, err = s2.Decode(nil, block)
		e.Payload = append(e.Payload, rest...)
	}
	return e, n + int(size), err
}

// oracleUnpack makes the RecordBatch of packed data.
func oracleUnpack(b []byte, epoch int32) ([]byte, error) {
	whole := b
	var head [4]uint64 // base offset, records, base timestamp (zigzag), maximal minus base timestamp
	for i := range head {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errors.New("head of packed data")
		}
		head[i], b = v, b[n:]
	}
	if len(b) < 6 {
		return nil, errors.New("head of packed data")
	}
	if sum := crc32.Checksum(whole[:len(whole)-len(b)+4], oracleCRC); uint16(sum) != binary.BigEndian.Uint16(b[4:]) {
		return nil, errors.New("check of the head of packed data")
	}
	records, err := s2.Decode(nil, b[6:])
	if err != nil {
		return nil, fmt.Errorf("packed data: %w", err)
	}
	first := int64(head[2]>>1) ^ -int64(head[2]&1)
	rb := kmsg.RecordBatch{
		FirstOffset: int64(head[0]), Length: int32(49 + len(records)), PartitionLeaderEpoch: epoch, Magic: 2,
		CRC: int32(binary.BigEndian.Uint32(b)), LastOffsetDelta: int32(head[1]) - 1,
		FirstTimestamp: first, MaxTimestamp: first + int64(head[3]),
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1, NumRecords: int32(head[1]), Records: records,
	}
	return rb.AppendTo(nil), nil
}

// check reads the batches and looks for contradictions between entries.
func (l *OracleLog) check() {
	next := map[uint32]int64{}
	var commit uint64
	for i, e := range l.Entries {
		if e.Commit < commit {
			l.problem("entry %d belongs to commit %d after commit %d", e.Index, e.Commit, commit)
		}
		commit = e.Commit
		if i > 0 && e.Epoch < l.Entries[i-1].Epoch {
			l.problem("entry %d is of epoch %d after epoch %d", e.Index, e.Epoch, l.Entries[i-1].Epoch)
		}
		if e.Kind != kindData {
			continue
		}
		recs, err := oracleBatch(e.Payload)
		if err != nil {
			l.problem("entry %d, partition %d: %v", e.Index, e.Partition, err)
			continue
		}
		for _, r := range recs {
			if want, ok := next[e.Partition]; ok && r.Offset != want {
				l.problem("entry %d, partition %d: offset %d where %d is due", e.Index, e.Partition, r.Offset, want)
			}
			next[e.Partition] = r.Offset + 1
		}
		l.Records[e.Partition] = append(l.Records[e.Partition], recs...)
	}
}

// oracleBatch reads a RecordBatch v2 with the decoder of franz-go.
func oracleBatch(b []byte) ([]OracleRecord, error) {
	var rb kmsg.RecordBatch
	if err := rb.ReadFrom(b); err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	if rb.Magic != 2 || int(rb.Length) != len(b)-12 {
		return nil, fmt.Errorf("batch: magic %d, length %d of %d bytes", rb.Magic, rb.Length, len(b))
	}
	if sum := crc32.Checksum(b[21:], oracleCRC); sum != uint32(rb.CRC) {
		return nil, fmt.Errorf("batch: crc32c %08x, header says %08x", sum, uint32(rb.CRC))
	}
	raw := rb.Records
	switch rb.Attributes & 7 {
	case 0:
	case 4:
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		if raw, err = d.DecodeAll(raw, nil); err != nil {
			return nil, fmt.Errorf("batch: %w", err)
		}
	default:
		return nil, fmt.Errorf("batch: codec %d is not for nodes", rb.Attributes&7)
	}
	out := make([]OracleRecord, 0, rb.NumRecords)
	for i := range int(rb.NumRecords) {
		length, n := binary.Varint(raw)
		if n <= 0 || length < 0 || int(length) > len(raw)-n {
			return nil, fmt.Errorf("batch: record %d of %d is cut", i, rb.NumRecords)
		}
		var r kmsg.Record
		if err := r.ReadFrom(raw[:n+int(length)]); err != nil {
			return nil, fmt.Errorf("batch: record %d: %w", i, err)
		}
		out = append(out, OracleRecord{
			Offset: rb.FirstOffset + int64(r.OffsetDelta), Timestamp: rb.FirstTimestamp + r.TimestampDelta64,
			Epoch: rb.PartitionLeaderEpoch, Key: r.Key, Value: r.Value, Headers: r.Headers,
		})
		raw = raw[n+int(length):]
	}
	if len(raw) != 0 {
		return nil, fmt.Errorf("batch: %d bytes after the last record", len(raw))
	}
	if n := len(out); n == 0 || out[n-1].Offset != rb.FirstOffset+int64(rb.LastOffsetDelta) {
		return nil, fmt.Errorf("batch: last offset delta %d with %d records", rb.LastOffsetDelta, n)
	}
	return out, nil
}
