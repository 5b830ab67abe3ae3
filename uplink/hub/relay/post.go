package relay

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"

	"tailrace/storage/record"
)

// Post is a record for Produce.
type Post struct {
	Partition  int
	Timestamp  int64
	Key, Value []byte
	Headers    []record.Header
	Offset     int64 // set by Produce
}

// RefusedError says that the cluster refuses records for what they are; nothing was stored.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return "the cluster refuses the records: " + e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// ErrUnknown says that the cluster did not answer a commit: the records may be there.
var ErrUnknown = errors.New("the outcome is not known")

// poster is the producer of what comes by the API: one transaction at a time.
type poster struct {
	mu     sync.Mutex // held while a transaction is under way
	pr     *producer
	fenced bool // pr may be used
}

// Produce stores records in one topic, all of them or none. They are committed when it
// returns nil.
func (r *Relay) Produce(ctx context.Context, topic string, list []Post) error {
	r.post.mu.Lock()
	defer r.post.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*giveUp) // half a transaction would hold readers up
	defer cancel()
	p := &r.post
	if p.pr == nil {
		h := fnv.New64a()
		h.Write([]byte(r.cfg.Address))
		p.pr = &producer{c: r.c, txn: fmt.Sprintf("%s-shard-post-%x", r.cfg.Name, h.Sum64()), log: r.cfg.Logger.Debug}
	}
	if !p.fenced {
		if err := p.pr.fence(ctx); err != nil {
			return err
		}
		p.fenced = true
	}
	committing, err := r.produce(ctx, topic, list)
	if err == nil {
		return nil
	}
	// The next life of the id aborts what is open; at once, it holds readers up.
	again, stop := context.WithTimeout(r.ctx, giveUp)
	defer stop()
	p.fenced = p.pr.fence(again) == nil
	if committing {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return err
}

func (r *Relay) produce(ctx context.Context, topic string, list []Post) (committing bool, err error) {
	pr := r.post.pr
	var parts []part
	lanes := map[part][]int{}
	for i := range list {
		p := part{topic, int32(list[i].Partition)}
		if lanes[p] == nil {
			parts = append(parts, p)
		}
		lanes[p] = append(lanes[p], i)
	}
	if parked, err := pr.add(ctx, parts); err != nil {
		return false, err
	} else if err := parked[topic]; err != nil {
		return false, &TopicError{topic, "the cluster does not take it: " + err.Error()}
	}
	for len(lanes) > 0 { // a batch of each partition a round
		var outs []*out
		var took [][]int
		for _, p := range parts {
			if len(lanes[p]) == 0 {
				delete(lanes, p)
				continue
			}
			var bl record.Builder
			bl.Reset(nil)
			n := 0
			for n < len(lanes[p]) && (n == 0 || bl.Len() < r.cfg.MergeBytes/2) {
				x := &list[lanes[p][n]]
				bl.Add(x.Timestamp, x.Key, x.Value, x.Headers)
				n++
			}
			outs = append(outs, &out{to: p, batch: record.Batch(record.Compress(nil, record.Batch(bl.Finish(0, 0))))})
			took = append(took, lanes[p][:n])
			lanes[p] = lanes[p][n:]
		}
		if len(outs) == 0 {
			break
		}
		if err := pr.produce(ctx, outs); err != nil {
			return false, err
		}
		for k, o := range outs {
			if o.err != nil {
				return false, &RefusedError{o.err}
			}
			for j, i := range took[k] {
				list[i].Offset = o.at + int64(j)
			}
		}
	}
	return true, pr.commit(ctx)
}
