package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage"
	"tailrace/storage/record"
)

// Produce (key 0), advertised v0 to v9, accepted v3 to v9. v0 to v2 carry
// message formats that nobody writes any more; they are advertised because
// librdkafka otherwise neither reads records nor compresses (Kafka 4 does the
// same), and answered with error 35. v10 to v12 add transactions, v13 ids.
//
// A partition's records must be exactly one RecordBatch v2, whole and valid to
// the last record. It is stored as it came, compressed or not, and answered
// when it is durable, with acks=1 as with acks=-1: there is one copy and it
// is on disk. A compacted topic takes no record without a key (INVALID_RECORD). acks=0 has no answer; a refusal closes the connection. Batches
// of an idempotent producer are checked against its last five (producers.go).
// Transactional and control batches are refused. The time-out of the request
// is not used: the disk answers or fails.
var produceAPI = api{key: 0, name: "Produce", min: 0, max: 9, accept: 3, raw: produce}

// produceJob is one request and its answer, which the parts complete.
type produceJob struct {
	h     header
	acks  int16
	resp  *kmsg.ProduceResponse
	parts []*producePart
	left  atomic.Int32 // parts, and one for the request itself, not yet done
	done  chan struct{}
}

// producePart is one batch. Its fields are written before it is submitted, or
// by its commit's callback, and read after done.
type producePart struct {
	job    *produceJob
	p      *storage.Partition
	batch  record.Batch // valid until produce returns
	turn   *turn        // of an idempotent producer, or nil
	at     int          // topic in the answer
	index  int          // partition in the answer's topic
	append int          // index in its storage.Append
}

// finish counts one part, or the request itself, as done.
func (j *produceJob) finish() {
	if j.left.Add(-1) == 0 {
		close(j.done)
	}
}

func (p *producePart) succeed(base int64) {
	o := p.part()
	o.BaseOffset = base
	o.LogStartOffset = p.p.Start()
	p.job.finish()
}

func (p *producePart) fail(e *kerr.Error, why string) {
	o := p.part()
	o.ErrorCode, o.BaseOffset = e.Code, -1
	if why != "" {
		o.ErrorMessage = &why
	}
	p.job.finish()
}

func (p *producePart) part() *kmsg.ProduceResponseTopicPartition {
	return &p.job.resp.Topics[p.at].Partitions[p.index]
}

func produce(_ context.Context, c *conn, h header, body []byte) error {
	j := &produceJob{h: h, resp: kmsg.NewPtrProduceResponse(), done: make(chan struct{})}
	j.resp.SetVersion(h.version)
	if a := c.s.apis[h.key]; h.version < a.accept {
		// The layout is not read: there is nothing to name in the answer.
		c.fault(h.key, kerr.UnsupportedVersion)
		return fmt.Errorf("version is not accepted, only v%d to v%d", a.accept, a.max)
	}
	txn, err := j.parse(h, body)
	if err != nil {
		return err
	}
	j.left.Store(int32(len(j.parts)) + 1)
	switch {
	case txn:
		j.refuse(kerr.TransactionalIDAuthorizationFailed, noTransactions)
	case j.acks != 0 && j.acks != 1 && j.acks != -1:
		j.refuse(kerr.InvalidRequiredAcks, "acks is 0, 1 or -1")
	default:
		c.submit(j)
	}
	j.finish()
	c.enqueue(pending{h: h, done: j.done, since: time.Now(), reply: func() (kmsg.Response, error) { return j.reply(c) }})
	return nil
}

func (j *produceJob) refuse(e *kerr.Error, why string) {
	for _, p := range j.parts {
		p.fail(e, why)
	}
}

// reply is called when every part is done.
func (j *produceJob) reply(c *conn) (kmsg.Response, error) {
	for _, t := range j.resp.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 {
				continue
			}
			e, _ := kerr.ErrorForCode(p.ErrorCode).(*kerr.Error)
			c.fault(0, e)
			if j.acks == 0 {
				return nil, fmt.Errorf("produce with acks=0 to %s/%d: %w", t.Topic, p.Partition, e)
			}
		}
	}
	if j.acks == 0 {
		return nil, nil
	}
	return j.resp, nil
}

// parse reads the request by hand: the records stay where they are, and no
// length is believed beyond the bytes behind it. It builds the skeleton of the
// answer.
func (j *produceJob) parse(h header, body []byte) (transactional bool, err error) {
	r := reader{b: body}
	flex := h.flexible
	_, transactional = r.str(flex)
	j.acks = r.int16()
	r.int32() // time-out
	for n := r.array(flex, 3); n > 0 && !r.bad; n-- {
		t := kmsg.NewProduceResponseTopic()
		t.Topic, _ = r.str(flex)
		j.resp.Topics = append(j.resp.Topics, t)
		for m := r.array(flex, 5); m > 0 && !r.bad; m-- {
			at := len(j.resp.Topics) - 1
			out := kmsg.NewProduceResponseTopicPartition()
			out.Partition = r.int32()
			part := &producePart{job: j, batch: r.bytes(flex), at: at, index: len(j.resp.Topics[at].Partitions)}
			if flex {
				r.tags()
			}
			j.resp.Topics[at].Partitions = append(j.resp.Topics[at].Partitions, out)
			j.parts = append(j.parts, part)
		}
		if flex {
			r.tags()
		}
	}
	if flex {
		r.tags()
	}
	if r.bad || len(r.b) != 0 {
		return false, errShortRequest
	}
	return transactional, nil
}

// submit checks the batches, puts those of one storage class into one append,
// and submits it. Batches of idempotent producers take their place in the
// producer's order first and keep it until they are submitted.
func (c *conn) submit(j *produceJob) {
	s := c.s
	var ready []*producePart
	for _, p := range j.parts {
		out := p.part()
		t, e := c.topic(j.resp.Topics[p.at].Topic, OpWrite, true)
		if e == nil {
			if p.p = t.Partition(int(out.Partition)); p.p == nil {
				e = kerr.UnknownTopicOrPartition
			}
		}
		if e != nil {
			p.fail(e, "")
			continue
		}
		if e, why := c.check(p); e != nil {
			p.fail(e, why)
			continue
		}
		ready = append(ready, p)
	}
	if len(ready) == 0 {
		return
	}
	unlock := s.producers.order(ready)
	defer unlock()
	for len(ready) > 0 {
		class := ready[0].p.Topic().Config().Class
		var mine, rest []*producePart
		for _, p := range ready {
			if p.p.Topic().Config().Class == class {
				mine = append(mine, p)
			} else {
				rest = append(rest, p)
			}
		}
		c.commit(class, mine)
		ready = rest
	}
}

// check tells why a batch may not be stored, nil when it may.
func (c *conn) check(p *producePart) (*kerr.Error, string) {
	b, rest, err := record.Next(p.batch)
	if err != nil {
		return kerr.CorruptMessage, err.Error()
	}
	if len(rest) != 0 {
		return kerr.InvalidRecord, "exactly one record batch is allowed per partition"
	}
	if limit := c.s.cfg.MaxBatchBytes; len(b) > limit {
		return kerr.MessageTooLarge, fmt.Sprintf("batch of %d bytes, allowed are %d (max_batch_bytes)", len(b), limit)
	}
	if err := b.Validate(c.decompressor()); err != nil {
		if errors.Is(err, record.ErrTooLarge) {
			return kerr.MessageTooLarge, err.Error()
		}
		return kerr.CorruptMessage, err.Error()
	}
	switch attrs := b.Attributes(); {
	case attrs&record.AttrTransactional != 0:
		return kerr.InvalidTxnState, noTransactions
	case attrs&record.AttrControl != 0:
		return kerr.InvalidRecord, "clients do not write control batches"
	case attrs&record.AttrLogAppendTime != 0:
		return kerr.InvalidTimestamp, "clients do not set the log append time"
	case b.ProducerID() < -1 || b.ProducerID() >= 0 && (b.BaseSequence() < 0 || b.ProducerEpoch() < 0):
		return kerr.InvalidRecord, "producer id, epoch and sequence do not belong together"
	}
	if p.p.Topic().Compacted() {
		if at := firstWithoutKey(b, c.decompressor()); at >= 0 {
			why := fmt.Sprintf("topic %s is compacted (cleanup.policy): a record without a key cannot be stored", p.p.Topic().Name())
			er := kmsg.NewProduceResponseTopicPartitionErrorRecord()
			er.RelativeOffset, er.ErrorMessage = at, &why
			p.part().ErrorRecords = append(p.part().ErrorRecords, er)
			return kerr.InvalidRecord, why
		}
	}
	if d := c.s.cfg.MaxFuture; d > 0 {
		if limit := c.s.cfg.Now().Add(d).UnixMilli(); b.MaxTimestamp() > limit {
			return kerr.InvalidTimestamp, fmt.Sprintf("timestamp %d is more than %v ahead of the hub's clock", b.MaxTimestamp(), d)
		}
	}
	p.batch = b
	return nil, ""
}

// firstWithoutKey is the number of the first record without a key in a valid batch,
// -1 when all have one.
func firstWithoutKey(b record.Batch, d *record.Decompressor) int32 {
	it := b.Iter(d)
	for i := int32(0); it.Next(); i++ {
		if it.Record().Key == nil {
			return i
		}
	}
	return -1
}

// commit submits the batches of one class.
func (c *conn) commit(class string, parts []*producePart) {
	a := c.s.store.NewAppend(class)
	var sent []*producePart
	records := 0
	for _, p := range parts {
		if p.batch.ProducerID() >= 0 {
			var e *kerr.Error
			if p.turn, e = c.s.producers.begin(p); p.turn == nil {
				if e != nil {
					p.fail(e, "")
				}
				continue // answered, or waiting for the first sending of it
			}
		}
		if err := a.Batch(p.p, p.batch, nil); err != nil {
			if p.turn != nil {
				p.turn.fail(storageError(err))
			}
			p.fail(storageError(err), err.Error())
			continue
		}
		if p.turn != nil {
			a.Set(storage.KindGroup, p.turn.key, p.turn.state)
		}
		p.append = len(sent)
		sent = append(sent, p)
		records += p.batch.Count()
	}
	if len(sent) == 0 {
		return
	}
	c.s.store.Submit(a, func(a *storage.Append, err error) {
		if err == nil {
			c.s.stats.produced.Add(records)
		} else if !errors.Is(err, storage.ErrClosed) {
			c.s.log.Error("kafka produce", "class", class, "batches", len(sent), "err", err)
		}
		for _, p := range sent {
			p.committed(a, err)
		}
	})
}

// committed is the outcome of a submitted part, on the committer's goroutine.
func (p *producePart) committed(a *storage.Append, err error) {
	if err != nil {
		e := storageError(err)
		if p.turn != nil {
			p.turn.fail(e)
		}
		p.fail(e, err.Error())
		return
	}
	base := a.Base(p.append)
	if p.turn != nil {
		p.turn.succeed(base)
	}
	p.succeed(base)
}

// sequenceAfter is the sequence that follows n more, wrapping at 2^31-1 to 0.
func sequenceAfter(first int32, n int) int32 {
	return int32((int64(first) + int64(n)) % (math.MaxInt32 + 1))
}
