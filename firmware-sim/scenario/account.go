package scenario

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"tailrace/edge"
	"tailrace/firmware-sim/ledger"
	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink/hub"
)

// rows reads a system topic of the hub.
func rows[T any](s *storage.Store, topic string) (out []T, err error) {
	e := eachRecord(s, topic, func(_ *storage.Partition, r *record.Record) {
		var v T
		if err == nil {
			err = json.Unmarshal(r.Value, &v)
		}
		out = append(out, v)
	})
	if err == nil {
		err = e
	}
	return out, err
}

// account checks that each record of a stream that the node has made durable, by epoch and
// offset, is at the hub once or is declared once, and that the hub has nothing else. It
// returns how many are declared.
func account(node, central *storage.Store, stream string) (declared int64, err error) {
	t, ok := node.Topic(stream)
	if !ok {
		return 0, nil
	}
	p := t.Partition(0)
	epochs, next := node.Epochs(), p.HighWatermark()
	// owner is the epoch in which an offset was given out.
	owner := make([]int, next)
	for k, e := range epochs {
		for off := e.ForkAt[p.ID()]; off < next; off++ {
			owner[off] = k
		}
	}
	seen, gone := make([]uint8, next), make([]uint8, next)
	var odd []string
	err = eachRecord(central, stream, func(cp *storage.Partition, r *record.Record) {
		name, epoch, off, ok := storage.ParseOriginHeader(header(r, storage.OriginHeader))
		switch {
		case !ok || name != nodeID || off >= next:
			odd = append(odd, fmt.Sprintf("%s/%d offset %d: of %q, offset %d of %d", stream, cp.Index(), r.Offset, name, off, next))
		case string(epoch[:]) != string(epochs[owner[off]].ID[:8]):
			odd = append(odd, fmt.Sprintf("%s/%d offset %d: offset %d of another epoch, %x", stream, cp.Index(), r.Offset, off, epoch))
		default:
			seen[off]++
		}
	})
	if err != nil {
		return 0, err
	}
	losses, err := rows[hub.LossRow](central, "__tailrace_loss")
	if err != nil {
		return 0, err
	}
	for _, l := range losses {
		if l.Topic != stream {
			continue
		}
		for off := l.From; off < l.To; off++ {
			if off >= next || l.Epoch != hex.EncodeToString(epochs[owner[off]].ID[:]) || l.Node != nodeID || l.Records != l.To-l.From {
				odd = append(odd, fmt.Sprintf("ledger row %+v at offset %d of %d", l, off, next))
				break
			}
			gone[off]++
			declared++
		}
	}
	for off := range seen {
		if seen[off]+gone[off] != 1 {
			odd = append(odd, fmt.Sprintf("%s: the node's offset %d is at the hub %d times and declared %d times", stream, off, seen[off], gone[off]))
		}
	}
	if len(odd) > 0 {
		return declared, fmt.Errorf("%d faults of the account of losses: %s", len(odd), strings.Join(odd[:min(len(odd), 8)], "\n  "))
	}
	return declared, nil
}

// only is a report without the losses that are declared. An observer of positions cannot
// say which records they are, so their number must be that of the ledger of losses, exactly.
func only(rep ledger.Report, declared int64) (ledger.Report, error) {
	if int64(rep.Lost) != declared || int64(rep.Delivered)+declared != int64(rep.Acked) || rep.Unknown != 0 {
		return rep, fmt.Errorf("%d acknowledged, %d delivered, %d declared, %d of unknown fate: %v", rep.Acked, rep.Delivered, declared, rep.Unknown, rep)
	}
	rep.Lost = 0
	return rep, nil
}

// judgeWills compares the wills at the hub with the devices' own account.
func (w *world) judgeWills(ds []*willDevice, declared bool) (wills int, err error) {
	seen := map[string]map[int]int{}
	err = eachRecord(w.hub.store(), aux, func(_ *storage.Partition, r *record.Record) {
		var p willPayload
		if json.Unmarshal(r.Value, &p) != nil || !p.Will {
			return
		}
		if seen[p.Dev] == nil {
			seen[p.Dev] = map[int]int{}
		}
		seen[p.Dev][p.N]++
	})
	for _, d := range ds {
		n, e := d.judge(seen[d.id], declared)
		wills += n
		if err == nil {
			err = e
		}
		delete(seen, d.id)
	}
	if err == nil && len(seen) > 0 {
		err = fmt.Errorf("wills of nobody: %v", seen)
	}
	return wills, err
}

// judgeRetained compares what a new subscriber gets with what the device published last.
func (w *world) judgeRetained() error {
	got, err := w.subscribed("retained/#", w.plan.retained())
	if err != nil {
		return err
	}
	for i := range w.plan.retained() {
		topic := fmt.Sprintf(retainedTopic, fmt.Sprintf("r-%05d", i))
		boot, seq, err := ledger.Identify(got[topic])
		_, last := w.book.Last(topic)
		if err != nil || seq != last {
			return fmt.Errorf("retained message of %s is boot %x sequence %d (%v), the device's last is %d", topic, boot, seq, err, last)
		}
		delete(got, topic)
	}
	if len(got) > 0 {
		return fmt.Errorf("%d retained messages that nobody published: %v", len(got), got)
	}
	return nil
}

const retainedTopic = "retained/%s"

// retained is how many devices publish retained messages.
func (p plan) retained() int {
	if p.retain {
		return 2
	}
	return 0
}

// judgeClock checks that each record with a wrong time is in a row of corrections that is
// right, or that says that nothing can be known, and that no right time is made wrong.
func (w *world) judgeClock(out *outcome, end time.Time) error {
	if w.plan.clock == "" || w.clock.lied {
		return nil
	}
	fixes, err := rows[edge.ClockRow](w.hub.store(), "__tailrace_clock")
	if err != nil {
		return err
	}
	out.ClockRows += len(fixes)
	losses, err := rows[hub.LossRow](w.hub.store(), "__tailrace_loss")
	if err != nil {
		return err
	}
	for _, l := range losses {
		if l.Topic == "__tailrace_clock" {
			return nil // given up like everything else, and declared
		}
	}
	var odd []string
	e := eachRecord(w.hub.store(), stream, func(_ *storage.Partition, r *record.Record) {
		_, epoch, off, _ := storage.ParseOriginHeader(header(r, storage.OriginHeader))
		wrong, at, ok := w.clock.wrongBy(time.UnixMilli(r.Timestamp), w.start, end)
		if !ok {
			odd = append(odd, fmt.Sprintf("offset %d has time %v, which the clock never gave", off, time.UnixMilli(r.Timestamp).UTC()))
			return
		}
		rest, covered := wrong, false
		for _, f := range fixes {
			if f.Topic == stream && f.From <= off && off < f.To && strings.HasPrefix(f.Epoch, hex.EncodeToString(epoch[:])) {
				if f.Unknown {
					return
				}
				rest, covered = rest+time.Duration(f.DeltaMS)*time.Millisecond, true
				break // as replay --corrected
			}
		}
		// A step is found within a second; a power cut in it takes the knowledge of it along.
		if rest.Abs() > 3*time.Second && !(!covered && w.stepThenCut(at)) {
			odd = append(odd, fmt.Sprintf("offset %d of %v: its time is %v wrong, %v after correction", off, at.Sub(w.start), wrong, rest))
		}
	})
	if e != nil {
		return e
	}
	if len(odd) > 0 {
		return fmt.Errorf("%d wrong times: %s\n%v", len(odd), strings.Join(odd[:min(len(odd), 5)], "\n  "), fixes)
	}
	return nil
}

// stepThenCut: the clock was set less than two seconds before a moment, and the node was in
// trouble less than two seconds after it.
func (w *world) stepThenCut(at time.Time) bool {
	w.clock.mu.Lock()
	defer w.clock.mu.Unlock()
	for _, s := range w.clock.steps {
		if d := at.Sub(s.at); d >= 0 && d < 2*time.Second && !w.calm(at) {
			return true
		}
	}
	return false
}
