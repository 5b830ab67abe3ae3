package relay

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tailrace/storage/record"
)

// TestReadersSeeWhatIsCommitted: of a topic with transactions that were committed and
// aborted, and with records that came without, whoever reads gets the first and the last, in
// blocks of any size; a POST of which one record is refused leaves nothing.
func TestReadersSeeWhatIsCommitted(t *testing.T) {
	f := newFleet(t, 1)
	r := f.all(f.open())
	topic := f.Name + ".app"
	if err := r.EnsureTopic(within(t), topic); err != nil {
		t.Fatal(err)
	}
	cl := f.client(kgo.TransactionalID(f.Name+"-app"), kgo.DefaultProduceTopic(topic))
	want := ""
	for i := range 6 {
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for k := range 5 {
			v := fmt.Sprintf("%d.%d ", i, k)
			if err := cl.ProduceSync(within(t), kgo.StringRecord(v)).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				want += v
			}
		}
		if err := cl.EndTransaction(within(t), kgo.TransactionEndTry(i%2 == 0)); err != nil {
			t.Fatal(err)
		}
	}
	list := []Post{{Value: []byte("post.0 ")}, {Value: []byte("post.1 "), Key: []byte("k")}}
	if err := r.Produce(within(t), topic, list); err != nil || list[1].Offset != list[0].Offset+1 {
		t.Fatal(err, list)
	}
	want += "post.0 post.1 "
	var refused *RefusedError
	if err := r.Produce(within(t), topic, []Post{{Value: []byte("never ")}, {Value: make([]byte, 2<<20), Headers: []record.Header{{Key: "h", Value: noise(f.origin(1), 0, []int{2 << 20})}}}}); !errors.As(err, &refused) {
		t.Errorf("a record that no broker takes: %v", err)
	}
	if err := r.Produce(within(t), topic, []Post{{Value: []byte("after ")}}); err != nil {
		t.Fatal(err)
	}
	want += "after "
	dec := record.NewDecompressor(0)
	defer dec.Close()
	for _, size := range []int{1, 200, 1 << 20} {
		var got string
		f.until(fmt.Sprintf("blocks of %d hold what is committed", size), func() bool {
			ends, err := r.Offsets(within(t), []string{topic}, AtStable)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			stable := ends[topic][0].Offset
			for from := int64(0); from < stable; {
				out, next, err := r.Fetch(within(t), nil, topic, 0, from, stable, size)
				if err != nil || next <= from {
					t.Fatalf("offset %d of %d: next %d, %v", from, stable, next, err)
				}
				for from = next; len(out) > 0; {
					var x record.Batch
					if x, out, err = record.Next(out); err != nil {
						t.Fatal(err)
					}
					for it := x.Iter(dec); it.Next(); {
						b.Write(it.Record().Value)
					}
				}
			}
			got = b.String()
			return strings.HasSuffix(got, "after ") // the last commit is visible
		})
		if got != want {
			t.Errorf("blocks of %d: %q, want %q", size, got, want)
		}
	}
	if _, _, err := r.Fetch(within(t), nil, topic, 0, 1<<40, 1<<41, 1); !errors.Is(err, ErrOutOfRange) {
		t.Errorf("an offset that is not there: %v", err)
	}
}
