package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
)

// Fetch (key 1), v4 to v12. v4 is the first with RecordBatch v2 and must be
// advertised for librdkafka; v13 replaces names by topic ids and is left out.
//
// The batches go out as they are stored: the first one holds the asked offset,
// and clients skip what precedes it. The first non-empty partition of a
// response gets its first batch whole whatever the limits say; later
// partitions get only what fits (KIP-74). Without enough bytes (MinBytes) the
// request waits up to MaxWait for the partitions' high watermarks to move; but
// who has just read a backlog to its end is told so at once, by one empty
// response: librdkafka reports the end of a partition on that only, and kcat -e
// would wait in vain for half a second.
// No records is an empty byte string, never null: librdkafka takes null for
// damage. Sessions (KIP-227) are declined with session id 0, which makes
// clients send full requests. There are no followers, racks or transactions.
var fetchAPI = api{key: 1, name: "Fetch", min: 4, max: 12, raw: fetch}

const (
	maxFetchWait  = time.Minute
	maxFetchBytes = 1 << 20  // what MinBytes is clamped to at most
	backlogBytes  = 64 << 10 // a response of so many bytes is of a backlog, not of live records
)

// fetchPart is one asked partition and its answer.
type fetchPart struct {
	p        *storage.Partition
	index    int32
	offset   int64
	max      int // bytes
	epoch    int32
	err      *kerr.Error
	from, to int // its batches in fetchJob.data
	hw       int64
	start    int64
}

type fetchTopic struct {
	name     string
	from, to int // its partitions in fetchJob.parts
}

// fetchJob is one request. Jobs are pooled with their buffers.
type fetchJob struct {
	topics []fetchTopic
	parts  []fetchPart
	data   []byte // batches of all partitions
	head   []byte // everything else of the response
	cuts   []int  // where in head the batches of the i-th part belong
	pieces net.Buffers
	wake   chan struct{} // capacity 1: any number of wakes are one
}

var fetchJobs = sync.Pool{New: func() any { return &fetchJob{wake: make(chan struct{}, 1)} }}

func fetch(ctx context.Context, c *conn, h header, body []byte) error {
	req := kmsg.NewPtrFetchRequest()
	req.SetVersion(h.version)
	if err := req.ReadFrom(body); err != nil {
		return err
	}
	j := fetchJobs.Get().(*fetchJob)
	defer j.free()
	j.resolve(c, req)

	limit := c.s.cfg.MaxFetchBytes
	if req.MaxBytes >= 0 {
		limit = min(limit, int(req.MaxBytes))
	}
	held, err := j.await(ctx, c, req, limit)
	if held > 0 {
		// Held until the bytes are with the kernel: memory of a slow reader
		// counts until TransferTimeout ends its connection.
		defer c.s.responses.Release(held)
	}
	if err != nil {
		return err
	}
	for i := range j.parts {
		if e := j.parts[i].err; e != nil {
			c.fault(h.key, e)
		}
	}
	j.encode(h, req.IsolationLevel == 1)
	c.s.stats.fetched.Add(len(j.data))
	c.backlog = len(j.data) >= backlogBytes
	return c.send(j.pieces)
}

func (j *fetchJob) free() {
	clear(j.parts)
	clear(j.topics)
	clear(j.pieces[:cap(j.pieces)])
	j.topics, j.parts, j.cuts, j.pieces = j.topics[:0], j.parts[:0], j.cuts[:0], j.pieces[:0]
	j.data, j.head = j.data[:0], j.head[:0]
	select {
	case <-j.wake:
	default:
	}
	if cap(j.data) <= 16<<20 && cap(j.head) <= 1<<20 {
		fetchJobs.Put(j)
	}
}

// resolve finds the asked partitions.
func (j *fetchJob) resolve(c *conn, req *kmsg.FetchRequest) {
	for _, rt := range req.Topics {
		ft := fetchTopic{name: rt.Topic, from: len(j.parts)}
		t, e := c.topic(rt.Topic, OpRead, false)
		for _, rp := range rt.Partitions {
			fp := fetchPart{index: rp.Partition, offset: rp.FetchOffset, max: int(rp.PartitionMaxBytes), epoch: rp.CurrentLeaderEpoch, hw: -1, start: -1, err: e}
			if e == nil {
				if fp.p = t.Partition(int(rp.Partition)); fp.p == nil {
					fp.err = kerr.UnknownTopicOrPartition
				} else {
					fp.err = c.s.checkEpoch(rp.CurrentLeaderEpoch)
				}
			}
			j.parts = append(j.parts, fp)
		}
		ft.to = len(j.parts)
		j.topics = append(j.topics, ft)
	}
}

// await reads until there is enough to answer: MinBytes, an error, or the end
// of MaxWait. It returns what it holds of the response budget.
func (j *fetchJob) await(ctx context.Context, c *conn, req *kmsg.FetchRequest, limit int) (held int64, err error) {
	wait := min(time.Duration(max(req.MaxWaitMillis, 0))*time.Millisecond, maxFetchWait)
	least := min(int(req.MinBytes), limit, maxFetchBytes)
	held, limit = c.reserve(limit)
	give := func() { // a request that waits holds nothing
		if held > 0 {
			c.s.responses.Release(held)
			held = 0
		}
	}
	if j.read(c, limit) || len(j.data) >= least || wait == 0 || len(j.data) == 0 && c.backlog {
		return held, nil
	}
	for i := range j.parts {
		if p := j.parts[i].p; p != nil {
			defer p.Subscribe(j.wake)()
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	// Bytes stored tell when reading again is worth it.
	had, before := len(j.data), j.stored()
	late := false
	for first := true; ; first = false {
		if now := j.stored(); first || late || now < before || had+int(now-before) >= max(least, 1) {
			if held == 0 {
				want := c.s.cfg.MaxFetchBytes
				if req.MaxBytes >= 0 {
					want = min(want, int(req.MaxBytes))
				}
				held, limit = c.reserve(want)
			}
			if j.read(c, limit) || len(j.data) >= least || late {
				return held, nil
			}
			had, before = len(j.data), j.stored()
		}
		give()
		select {
		case <-j.wake:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			return held, errGone
		}
	}
}

// stored is the sum of the bytes of the asked partitions.
func (j *fetchJob) stored() (n int64) {
	for i := range j.parts {
		if p := j.parts[i].p; p != nil {
			n += p.Bytes()
		}
	}
	return n
}

// reserve takes limit bytes of the response budget, or what is left of it in
// coarse steps. With nothing left a response still carries one batch: slow
// readers that hold the budget make others slower, never stop them.
func (c *conn) reserve(limit int) (held int64, granted int) {
	for want := limit; want > 0; want /= 4 {
		if c.s.responses.TryAcquire(int64(want)) {
			if want < limit {
				c.s.stats.starved.Inc()
			}
			return int64(want), want
		}
		if want < 64<<10 {
			break
		}
	}
	c.s.stats.starved.Inc()
	return 0, min(limit, 1)
}

// read fills data with what the partitions have, within limit, and tells
// whether one of them has an error to report.
func (j *fetchJob) read(c *conn, limit int) (failed bool) {
	j.data = j.data[:0]
	for i := range j.parts {
		fp := &j.parts[i]
		fp.from, fp.to = len(j.data), len(j.data)
		if fp.p == nil || fp.err != nil {
			failed = failed || fp.err != nil
			continue
		}
		// Start before the read, high watermark after it: what is read lies
		// between them.
		fp.start = fp.p.Start()
		room := min(fp.max, limit-len(j.data))
		first := len(j.data) == 0
		if fp.hw = fp.p.HighWatermark(); fp.offset < fp.start || fp.offset > fp.hw {
			fp.err, failed = kerr.OffsetOutOfRange, true
			continue
		}
		if fp.offset == fp.hw || room <= 0 && !first {
			continue
		}
		out, _, err := fp.p.Read(j.data, fp.offset, max(room, 1))
		switch {
		case err != nil:
			j.data = j.data[:fp.from]
			fp.err, failed = storageError(err), true
			if !errors.Is(err, storage.ErrOffsetOutOfRange) { // else retention was faster
				c.s.log.Error("kafka read", "topic", fp.p.Topic().Name(), "partition", fp.index, "offset", fp.offset, "err", err)
			}
		case !first && len(out)-fp.from > room:
			j.data = out[:fp.from] // does not fit: next time
		default:
			j.data = out
			fp.to = len(out)
			fp.hw = max(fp.hw, fp.p.HighWatermark())
		}
	}
	return failed
}

// encode writes the response as pieces: the fields from head, the batches from
// data, so that no batch is copied once it is read. The layout is checked
// against kmsg in the tests.
func (j *fetchJob) encode(h header, committed bool) {
	be := binary.BigEndian
	flex := h.flexible
	b := appendHeader(j.head[:0], h)
	b = be.AppendUint32(b, 0) // throttle
	if h.version >= 7 {
		b = be.AppendUint16(b, 0) // error
		b = be.AppendUint32(b, 0) // session id: none
	}
	b = appendArrayLen(b, len(j.topics), flex)
	for _, t := range j.topics {
		b = appendString(b, t.name, flex)
		b = appendArrayLen(b, t.to-t.from, flex)
		for i := t.from; i < t.to; i++ {
			fp := &j.parts[i]
			code := int16(0)
			if fp.err != nil {
				code = fp.err.Code
			}
			b = be.AppendUint32(b, uint32(fp.index))
			b = be.AppendUint16(b, uint16(code))
			b = be.AppendUint64(b, uint64(fp.hw))
			b = be.AppendUint64(b, uint64(fp.hw)) // last stable offset
			if h.version >= 5 {
				b = be.AppendUint64(b, uint64(fp.start))
			}
			b = appendNoAborted(b, committed, flex)
			if h.version >= 11 {
				b = be.AppendUint32(b, 0xffffffff) // preferred read replica: none
			}
			n := fp.to - fp.from
			if flex {
				b = binary.AppendUvarint(b, uint64(n)+1)
			} else {
				b = be.AppendUint32(b, uint32(n))
			}
			j.cuts = append(j.cuts, len(b))
			if flex {
				b = append(b, 0)
			}
		}
		if flex {
			b = append(b, 0)
		}
	}
	if flex {
		b = append(b, 0)
	}
	setLength(b, len(j.data))
	j.head = b
	at := 0
	for i, cut := range j.cuts {
		if fp := &j.parts[i]; fp.to > fp.from {
			j.pieces = append(j.pieces, b[at:cut], j.data[fp.from:fp.to])
			at = cut
		}
	}
	j.pieces = append(j.pieces, b[at:])
}

// appendNoAborted writes the list of aborted transactions: there are none; it
// is empty for read_committed and null for others, as a broker writes it.
func appendNoAborted(b []byte, committed, flex bool) []byte {
	switch {
	case flex && committed:
		return append(b, 1)
	case flex:
		return append(b, 0)
	case committed:
		return append(b, 0, 0, 0, 0)
	}
	return append(b, 0xff, 0xff, 0xff, 0xff)
}

func appendArrayLen(b []byte, n int, flex bool) []byte {
	if flex {
		return binary.AppendUvarint(b, uint64(n)+1)
	}
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func appendString(b []byte, s string, flex bool) []byte {
	if flex {
		b = binary.AppendUvarint(b, uint64(len(s))+1)
	} else {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	}
	return append(b, s...)
}
