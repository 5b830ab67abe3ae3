package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailrace/storage"
	"tailrace/storage/record"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/hub/kafka"
	"tailrace/uplink/hub/relay"
	"tailrace/uplink/wire"
)

// MigrateOptions say how an embedded hub's records come into a cluster.
type MigrateOptions struct {
	DryRun bool
	// Progress hears how many bytes of how many are copied; nil = nobody asks.
	Progress func(done, total int64)
	Step     int       // bytes of a partition in one transaction; default 1 MiB
	Map      io.Writer // the map of offsets, one JSON object a line (relay.MoveRow); nil = none
}

// Migration says what was moved, or would be.
type Migration struct {
	Source   string              `json:"source"`    // data_dir of the embedded hub
	Store    string              `json:"store"`     // its id
	Fleet    string              `json:"fleet"`     // store.kafka.name
	NewStore string              `json:"new_store"` // what nodes see from now on
	DryRun   bool                `json:"dry_run"`   // nothing was changed
	Resumed  bool                `json:"resumed"`   // an earlier run had begun
	Done     bool                `json:"done"`      // everything is there, hubs may start on the cluster
	Problems []string            `json:"problems"`  // why it cannot be done
	Warnings []string            `json:"warnings"`  // what will be different
	Topics   []MovedTopic        `json:"topics"`    //
	Groups   []relay.MovedOffset `json:"groups"`    // offsets of consumer groups
	Nodes    int                 `json:"nodes"`     //
	Origins  int                 `json:"origins"`   // of which the progress was moved
	Losses   int64               `json:"losses"`    // rows of the loss ledger copied by this run
	Records  int64               `json:"records"`   // copied by this run
}

// MovedTopic is a topic and how it is in the cluster.
type MovedTopic struct {
	Name       string           `json:"topic"`
	Partitions int              `json:"cluster_partitions"`
	Parts      []MovedPartition `json:"partitions"`
}

// MovedPartition is how far a partition is copied. Its number stays.
type MovedPartition struct {
	Partition int   `json:"partition"`
	Start     int64 `json:"start"` // at the embedded hub
	End       int64 `json:"end"`
	Copied    int64 `json:"copied_to"`               // one past the last offset that is in the cluster
	First     int64 `json:"cluster_first,omitempty"` // offset of the first record there
	Last      int64 `json:"cluster_last,omitempty"`  // and of the last
	Runs      int   `json:"runs"`                    // pieces in which offsets differ by one number
}

// movedKey in KindMeta of an embedded hub's store says where its records are now.
const movedKey = "moved"

// movedTo refuses to go on with a store whose records are in a cluster: the nodes go on there.
func movedTo(s *storage.Store) error {
	v, ok := s.State(storage.KindMeta, movedKey)
	if !ok {
		return nil
	}
	return fmt.Errorf("the records of this store were moved into a Kafka cluster (%s), where the nodes go on: start the hub with store.kafka", v)
}

// migration is one under way.
type migration struct {
	opts  MigrateOptions
	to    Config
	store *storage.Store
	m     *relay.Mover
	res   *Migration

	assigns    map[assignKey]Assignment
	ofNodes    map[string]bool // topics that nodes write, and their companions
	done, sum  int64           // bytes
	partitions []*source
}

// source is a partition that is copied.
type source struct {
	p      *storage.Partition
	topic  string
	ledger bool
	next   int64
	info   *MovedPartition
}

// Migrate copies the topics of an embedded hub, which must not be running, into a cluster that
// no hub uses yet, and translates what says where somebody is: offsets of consumer groups,
// progress of nodes. It may be killed and run again at any point.
func Migrate(ctx context.Context, from, to Config, opts MigrateOptions) (*Migration, error) {
	switch {
	case from.Store.Kafka != nil:
		return nil, errors.New("the hub to be moved has store.kafka in its configuration: it is not an embedded one")
	case to.Store.Kafka == nil:
		return nil, errors.New("the configuration to move to has no store.kafka")
	}
	from, to = from.withDefaults(), to.withDefaults()
	store, err := storage.Open(from.storage())
	if err != nil {
		return nil, fmt.Errorf("open the store in %s (is the hub stopped?): %w", from.DataDir, err)
	}
	defer store.Close()
	cfg, err := to.relay()
	if err != nil {
		return nil, err
	}
	cfg.Logger, cfg.Now = to.Logger, to.Now
	cfg.LossRow = func(l relay.Loss) []byte { return rowOf(l).encode() } // unused
	m, err := relay.OpenMover(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	x := &migration{opts: opts, to: to, store: store, m: m, assigns: map[assignKey]Assignment{}, ofNodes: map[string]bool{},
		res: &Migration{Source: from.DataDir, Store: wire.ID(store.Identity().StoreID).String(), Fleet: cmp.Or(to.Store.Kafka.Name, "tailrace"), DryRun: opts.DryRun,
			Problems: []string{}, Warnings: []string{}, Topics: []MovedTopic{}, Groups: []relay.MovedOffset{}}}
	return x.res, x.run(ctx)
}

func (x *migration) run(ctx context.Context) error {
	already, err := x.m.Look(ctx, x.res.Store)
	if err != nil {
		return err
	}
	x.res.NewStore = x.m.Store().String()
	if err := x.state(); err != nil {
		return err
	}
	if err := x.plan(ctx); err != nil {
		return err
	}
	if len(x.res.Problems) > 0 {
		return fmt.Errorf("nothing was changed: %s", strings.Join(x.res.Problems, "; "))
	}
	if x.opts.DryRun && !already {
		return nil
	}
	if !already {
		if err := x.m.Begin(ctx, x.res.Store); err != nil {
			return err
		}
		if err := x.copy(ctx); err != nil {
			return err
		}
	}
	if err := x.offsets(ctx, !already && !x.opts.DryRun); err != nil {
		return err
	}
	if x.opts.DryRun {
		x.res.Done = already
		return nil
	}
	if !already {
		if err := x.progress(); err != nil {
			return err
		}
		if err := x.m.Finish(ctx); err != nil {
			return err
		}
	}
	// From here on this store is history: also when the process dies before, since hubs start
	// on the cluster only.
	a := x.store.NewAppend("")
	a.Set(storage.KindMeta, movedKey, fmt.Appendf(nil, "fleet %s, store %s, %s", x.res.Fleet, x.res.NewStore, x.to.Now().UTC().Format(time.RFC3339)))
	if err := x.store.Commit(ctx, a); err != nil {
		return err
	}
	x.res.Done = true
	return nil
}

// state reads which topics nodes write.
func (x *migration) state() (err error) {
	x.store.RangeState(storage.KindAssign, func(key string, value []byte) bool {
		var k assignKey
		var a Assignment
		if k, err = parseAssignKey(key); err == nil {
			err = saved.Decode(value, &a)
		}
		if err != nil {
			err = fmt.Errorf("assignment %q: %w", key, err)
			return false
		}
		x.assigns[k] = a
		x.ofNodes[a.Topic], x.ofNodes[companionOf(a.Topic)] = true, true
		return true
	})
	return err
}

// plan lists what is to be copied, and what stands in the way.
func (x *migration) plan(ctx context.Context) error {
	bad := func(format string, args ...any) {
		x.res.Problems = append(x.res.Problems, fmt.Sprintf(format, args...))
	}
	warn := func(format string, args ...any) {
		x.res.Warnings = append(x.res.Warnings, fmt.Sprintf(format, args...))
	}
	outage := time.Duration(x.to.Store.Kafka.LongestOutage)
	for _, t := range x.store.Topics() {
		ledger, c := strings.HasPrefix(t.Name(), lossTopic), t.Config()
		mt := MovedTopic{Name: t.Name(), Partitions: len(t.Partitions())}
		if x.ofNodes[t.Name()] {
			mt.Partitions = max(mt.Partitions, x.m.Shards()) // every shard has one
		}
		for _, p := range t.Partitions() {
			next, begun := x.m.Next(t.Name(), p.Index())
			if x.res.Resumed = x.res.Resumed || begun; !begun {
				next = p.Start()
			}
			mt.Parts = append(mt.Parts, MovedPartition{Partition: p.Index(), Start: p.Start(), End: p.HighWatermark(), Copied: next, First: -1, Last: -1})
		}
		x.res.Topics = append(x.res.Topics, mt)
		for i := range mt.Parts {
			x.partitions = append(x.partitions, &source{p: t.Partition(i), topic: t.Name(), ledger: ledger, next: mt.Parts[i].Copied, info: &mt.Parts[i]})
		}
		x.sum += topicBytes(t)
		if ledger {
			continue
		}
		if x.m.System(t.Name()) {
			bad("topic %q has the name of one of the cluster's own: give the fleet another store.kafka.name", t.Name())
		}
		if x.ofNodes[t.Name()] && t.Compacted() {
			bad("topic %q is compacted, and nodes write to it: a cluster would throw their records away", t.Name())
		}
		if x.ofNodes[t.Name()] && c.RetentionAge > 0 && c.RetentionAge < outage {
			bad("topic %q keeps records for %s, less than longest_outage (%s): raise its retention before, or lower longest_outage", t.Name(), c.RetentionAge, outage)
		}
		if c.RetentionAge > 0 && c.RetentionByArrival {
			warn("topic %q: %s are counted from the arrival of a record here, and from its own time in the cluster", t.Name(), c.RetentionAge)
		}
		if !x.res.Resumed {
			empty, err := x.m.Empty(ctx, t.Name())
			if err != nil {
				return err
			}
			if !empty {
				bad("topic %q is in the cluster and not empty", t.Name())
			}
		}
	}
	return nil
}

func topicBytes(t *storage.Topic) (n int64) {
	for _, p := range t.Partitions() {
		n += p.Bytes()
	}
	return n
}

const moveParts = 16 // partitions in one transaction

// copy brings the records over: some partitions at a time, a piece of each in one transaction.
func (x *migration) copy(ctx context.Context) error {
	for _, t := range x.store.Topics() {
		if strings.HasPrefix(t.Name(), lossTopic) {
			continue
		}
		i := slices.IndexFunc(x.res.Topics, func(m MovedTopic) bool { return m.Name == t.Name() })
		c := t.Config()
		configs := map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
		if t.Compacted() {
			configs["cleanup.policy"] = "compact"
		}
		if c.RetentionAge > 0 {
			configs["retention.ms"] = strconv.FormatInt(c.RetentionAge.Milliseconds(), 10)
		}
		if c.RetentionBytes > 0 {
			configs["retention.bytes"] = strconv.FormatInt(c.RetentionBytes, 10)
		}
		if err := x.m.Topic(ctx, t.Name(), x.res.Topics[i].Partitions, configs); err != nil {
			return err
		}
	}
	for _, s := range x.partitions {
		if next, ok := x.m.Next(s.topic, s.p.Index()); ok { // behind the fence it is final
			s.next = next
		}
		if s.next = max(s.next, s.p.Start()); s.next < s.p.HighWatermark() {
			continue
		}
		x.done += s.p.Bytes()
	}
	open := slices.Clone(x.partitions)
	for {
		open = slices.DeleteFunc(open, func(s *source) bool { return s.next >= s.p.HighWatermark() })
		if len(open) == 0 {
			return nil
		}
		var pieces []relay.Moved
		var of []*source
		for _, s := range open[:min(moveParts, len(open))] {
			pc, bytes, err := x.piece(s)
			if err != nil {
				return err
			}
			x.done += bytes
			pieces, of = append(pieces, pc), append(of, s)
		}
		n, err := x.m.Copy(ctx, pieces)
		if err != nil {
			return err
		}
		for i, s := range of {
			s.next, s.info.Copied = pieces[i].Next, pieces[i].Next
			if s.ledger {
				for _, b := range pieces[i].Batches {
					x.res.Losses += int64(b.Count())
				}
			}
		}
		x.res.Records += n
		if x.opts.Progress != nil {
			x.opts.Progress(min(x.done, x.sum), x.sum)
		}
	}
}

// piece reads the next batches of a partition.
func (x *migration) piece(s *source) (pc relay.Moved, bytes int64, err error) {
	out, next, err := s.p.Read(nil, s.next, cmp.Or(x.opts.Step, 1<<20))
	if err != nil {
		return pc, 0, fmt.Errorf("read %s/%d at offset %d: %w", s.topic, s.p.Index(), s.next, err)
	}
	if next <= s.next {
		return pc, 0, fmt.Errorf("read %s/%d: nothing comes at offset %d of %d", s.topic, s.p.Index(), s.next, s.p.HighWatermark())
	}
	pc = relay.Moved{Topic: s.topic, Partition: s.p.Index(), Next: next}
	if s.ledger {
		pc.To = x.m.LossPlace
	}
	for rest := out; len(rest) > 0; {
		var b record.Batch
		if b, rest, err = record.Next(rest); err != nil {
			return pc, 0, fmt.Errorf("read %s/%d at offset %d: %w", s.topic, s.p.Index(), s.next, err)
		}
		if b.BaseOffset() < s.next { // begins in the middle: what lies before was deleted
			cut, err := record.Split(nil, b, s.next, b.NextOffset())
			if err != nil {
				return pc, 0, err
			}
			b = record.Batch(cut)
		}
		pc.Batches = append(pc.Batches, b)
	}
	return pc, int64(len(out)), nil
}

// offsets translates where consumer groups are, and says where everything is.
func (x *migration) offsets(ctx context.Context, commit bool) error {
	infos := map[string]*MovedPartition{}
	for _, s := range x.partitions {
		infos[fmt.Sprint(s.topic, "/", s.p.Index())] = s.info
	}
	var list []relay.MovedOffset
	for _, o := range kafka.CommittedOffsets(x.store) {
		list = append(list, relay.MovedOffset{Group: o.Group, Topic: o.Topic, Partition: o.Partition, Old: o.Offset, Metadata: o.Metadata})
	}
	slices.SortFunc(list, func(a, b relay.MovedOffset) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	var werr error
	err := x.m.Translate(ctx, list, func(row relay.MoveRow) {
		if info := infos[fmt.Sprint(row.Topic, "/", row.Partition)]; info != nil && len(row.Runs) > 0 {
			if last := row.Runs[len(row.Runs)-1]; info.First < 0 {
				info.First, info.Last = row.Runs[0].New, last.New+last.N-1
			} else {
				info.Last = last.New + last.N - 1
			}
			info.Runs += len(row.Runs)
			info.Copied = row.Next
		}
		if x.opts.Map != nil && werr == nil {
			b, err := json.Marshal(row)
			if err == nil {
				_, err = x.opts.Map.Write(append(b, '\n'))
			}
			werr = err
		}
	})
	if err = cmp.Or(err, werr); err != nil {
		return err
	}
	x.res.Groups = append(x.res.Groups, list...)
	if !commit {
		return nil
	}
	return x.m.Commit(ctx, list)
}

// progress gathers what is known of nodes. What does not decode stops it, as it stops a hub.
func (x *migration) progress() (err error) {
	x.store.RangeState(storage.KindRegistry, func(key string, value []byte) bool {
		kind, rest, _ := strings.Cut(key, "/")
		switch kind + "/" {
		case epochsPrefix:
			var list []wire.EpochInfo
			if err = saved.Decode(value, &list); err != nil {
				err = fmt.Errorf("epochs of node %q: %w", rest, err)
				return false
			}
			x.m.Epochs(rest, list)
			x.res.Nodes++
		case nodePrefix:
			x.m.Note(rest, value)
		case devicePrefix:
			node, _, _ := strings.Cut(rest, "/")
			x.m.Entry(node, key, value)
		case fetchPrefix:
			var f savedFetch
			if err = saved.Decode(value, &f); err != nil {
				err = fmt.Errorf("registry entry %q: %w", key, err)
				return false
			}
			x.m.Entry(f.Node, key, value)
		}
		return true
	})
	if err != nil {
		return err
	}
	x.store.RangeState(storage.KindProgress, func(key string, value []byte) bool {
		var k streamKey
		var v progressValue
		if k, err = parseStreamKey(key); err == nil {
			err = saved.Decode(value, &v)
		}
		a, ok := x.assigns[assignKey{k.node, k.topic, k.partition}]
		if err == nil && !ok {
			err = errors.New("it has no assignment")
		}
		if err != nil {
			err = fmt.Errorf("progress %q: %w", key, err)
			return false
		}
		x.m.Progress(k.origin(), relay.MovedProgress{Held: v.Held, LastOffset: v.LastOffset, LastCRC: v.LastCRC, MaxTime: v.MaxTime,
			Stored: v.Stored, BackNext: v.BackNext, Backfilled: v.Backfilled, Partition: a.Partition})
		x.res.Origins++
		return true
	})
	return err
}
