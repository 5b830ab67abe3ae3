package scenario

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"tailrace/storage"
)

// manyTopics are asked for by so many Wants that a slow link carries them one after the other.
const manyTopics = 80

// A copy of a node's log differs in one topic only; all others go on where the hub's end.
// Nothing of it is stored, in whatever order and however slowly the hub's questions come:
// logs are compared as a whole before anything is sent. And what the hub acknowledged of the
// other log frees nothing of the copy.
func TestOneTopicThatDiffersHoldsAllOthersBack(t *testing.T) {
	name := func(i int) string { return fmt.Sprintf("topic-%03d", i) }
	for _, c := range []struct {
		differs int
		link    conditions
	}{
		{0, conditions{Rate: 32e3, Delay: 200 * time.Millisecond}},
		{manyTopics - 1, conditions{Rate: 32e3, Delay: 200 * time.Millisecond}},
		{manyTopics / 2, conditions{Rate: 20e6, Delay: 10 * time.Millisecond}},
		{manyTopics / 2, conditions{Rate: 64e3, Delay: 100 * time.Millisecond, Loss: [2]float64{0.3, 0.1}}},
		{manyTopics - 1, conditions{Rate: 256e3, Delay: 30 * time.Millisecond, Loss: [2]float64{0.3, 0.1}}},
		{1, conditions{Rate: 256e3, Delay: 30 * time.Millisecond, Loss: [2]float64{0.4, 0}}},
	} {
		t.Run(fmt.Sprintf("%s differs, %v bit/s, loss %v", name(c.differs), c.link.Rate, c.link.Loss), func(t *testing.T) {
			t.Parallel()
			inSeededTruth(t, uint64(c.differs), small("reject"), func(w *truth) {
				w.ready(w.node)
				for i := range manyTopics {
					_, err := w.node.store().CreateTopic(name(i), storage.TopicConfig{Partitions: 1})
					w.must(err)
				}
				w.node.off() // topics that nobody published to are offered at the next start
				w.must(w.node.on())
				for i := range manyTopics {
					w.put(w.node, name(i), "a", 0, 1)
				}
				w.put(w.node, stream, "a", 0, 1)
				all := func(n int64) bool {
					for i := range manyTopics {
						if w.completeTo(name(i)) < n {
							return false
						}
					}
					return true
				}
				w.until("all topics are at the hub", func() bool { return all(1) })
				w.node.off()
				older := w.save(w.node)
				w.must(w.node.on())
				w.put(w.node, name(c.differs), "a", 1, 3)
				w.until("the topic's next records, too", func() bool { return w.completeTo(name(c.differs)) == 4 })
				w.node.off()

				w.restore(w.node, older)
				w.down()
				w.must(w.node.on())
				for i := range manyTopics {
					w.put(w.node, name(i), "copy", 1, 1)
				}
				w.put(w.node, name(c.differs), "copy", 2, 5)
				w.wan.set(c.link)
				w.until("the node is fenced", func() bool { return w.info().State == "fenced" })
				w.filled(name(c.differs), "copy", 7)
				time.Sleep(5 * time.Minute)
				w.up()
				time.Sleep(5 * time.Minute)
				for i := range manyTopics {
					w.onlyTags(name(i), "a")
				}
				tp, _ := w.node.store().Topic(name(c.differs))
				if p := tp.Partition(0); p.Start() > 1 {
					t.Errorf("the copy gave up its own records below %d: the hub's acks are of another log", p.Start())
				}
			})
		})
	}
}

// filled appends until the node refuses.
func (w *truth) filled(topic, tag string, from int) {
	w.t.Helper()
	s := w.node.store()
	t, _ := s.Topic(topic)
	for i := from; i < from+5000; i++ {
		a := s.NewAppend("")
		w.must(a.Record(t.Partition(0), time.Now().UnixMilli(), []byte("k"), fmt.Appendf(nil, "%s %05d %04000d", tag, i, 0), nil))
		err := s.Commit(w.t.Context(), a)
		if errors.Is(err, storage.ErrFull) {
			return
		}
		w.must(err)
		time.Sleep(time.Millisecond)
	}
	w.t.Errorf("a node of 384 KiB took 20 MB")
}
