package relay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/storage/record"
	"tailrace/uplink"
	"tailrace/uplink/hub/internal/saved"
	"tailrace/uplink/wire"
)

// Mover brings what an embedded hub holds into a cluster that no hub uses yet. Each Copy is
// one transaction: records, and a row of the migration topic that says where they came from
// and where they are. Finish is the last: the nodes' progress, and the row "done". Killed
// at any point, the next Mover of the same source goes on where the last row ends; until
// "done" no hub starts on the cluster.
type Mover struct {
	r    *Relay
	pr   *producer
	next map[string]int64 // by source partition, where to go on
	mine bool             // the migration topic is there and begun by this source
	done bool
	keys map[int32][]keyed // of Finish, by shard
}

// MoveTopic is the migration's own topic: one partition, JSON rows, kept for ever. It is the map
// from the offsets of the embedded hub to those of the cluster.
func (c Config) MoveTopic() string { return "__" + c.Name + "_migration" }

func (c Config) moveID() string { return c.Name + "-shard-migrate" }

// Run is n records of a partition, from offset Old at the embedded hub on and from New on
// in the cluster.
type Run struct{ Old, New, N int64 }

// MoveRow is a record of the migration topic.
type MoveRow struct {
	Kind      string `json:"kind"`                // "begin", "copy", "done"
	Source    string `json:"source,omitempty"`    // store of the embedded hub; of begin
	Topic     string `json:"topic,omitempty"`     // of copy, and what follows
	Partition int    `json:"partition,omitempty"` // the same on both sides, but for the loss ledger
	Next      int64  `json:"next,omitempty"`      // one past the last offset copied
	Runs      []Run  `json:"runs,omitempty"`
	At        int64  `json:"at"` // ms since 1970
}

func sourceKey(topic string, partition int) string { return fmt.Sprint(topic, "/", partition) }

// OpenMover connects. It changes nothing.
func OpenMover(ctx context.Context, cfg Config) (*Mover, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	opts, err := cfg.options()
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	r := &Relay{cfg: cfg, checked: map[string]bool{}, c: &cluster{cl: cl}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	m := &Mover{r: r, next: map[string]int64{}, keys: map[int32][]keyed{}}
	if err := r.checkCluster(ctx); err != nil {
		m.Close()
		return nil, fmt.Errorf("kafka cluster: %w", err)
	}
	m.pr = &producer{c: r.c, txn: cfg.moveID(), log: cfg.Logger.Debug, lasts: time.Minute}
	return m, nil
}

// Close ends the connections.
func (m *Mover) Close() {
	m.r.cancel()
	m.r.c.cl.Close()
}

// Shards is how many there are.
func (m *Mover) Shards() int { return m.r.cfg.Shards }

// System says whether a topic is the relay's own.
func (m *Mover) System(topic string) bool {
	return m.r.Reserved(topic) || topic == m.r.cfg.MoveTopic()
}

// Store is the id of the store that nodes will see.
func (m *Mover) Store() wire.ID { return storeID(m.r.c.cluster, m.r.cfg.Name) }

// Look reads how far an earlier Mover of the source has come, and says why one may not
// begin: hubs are running, or the fleet has nodes already.
func (m *Mover) Look(ctx context.Context, source string) (done bool, err error) {
	if n, err := m.hubs(ctx); err != nil {
		return false, err
	} else if n > 0 {
		return false, fmt.Errorf("%d hubs of fleet %q are running on the cluster: stop them first", n, m.r.cfg.Name)
	}
	if n, err := m.r.Partitions(ctx, m.r.cfg.MoveTopic()); err != nil {
		return false, err
	} else if n > 0 {
		if err := m.r.rows(ctx, func(row MoveRow) error { return m.take(row, source) }); err != nil {
			return false, err
		}
	}
	if m.mine {
		return m.done, nil
	}
	switch n, err := m.r.Partitions(ctx, m.r.cfg.ProgressTopic()); {
	case err != nil:
		return false, err
	case n > 0:
		ends, err := m.r.Offsets(ctx, []string{m.r.cfg.ProgressTopic()}, AtStable)
		if err != nil {
			return false, err
		}
		for i, p := range ends[m.r.cfg.ProgressTopic()] {
			if p.Offset > 0 {
				return false, fmt.Errorf("fleet %q has nodes on the cluster already (%s/%d is not empty): give it another store.kafka.name", m.r.cfg.Name, m.r.cfg.ProgressTopic(), i)
			}
		}
	}
	return false, nil
}

// hubs is how many run on the cluster.
func (m *Mover) hubs(ctx context.Context) (n int, err error) {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = []string{m.r.cfg.Name + "-hubs"}
	for {
		n = 0
		resp, err := req.RequestWith(ctx, m.r.c.cl)
		if err == nil {
			for _, g := range resp.Groups {
				n += len(g.Members)
				if e := kerr.ErrorForCode(g.ErrorCode); e != nil && !errors.Is(e, kerr.GroupIDNotFound) {
					err = e
				}
			}
		}
		// A cluster in which nobody has consumed yet makes its groups' topic first.
		if err == nil || !kerr.IsRetriable(err) || !pause(ctx, 100*time.Millisecond) {
			return n, err
		}
	}
}

func (m *Mover) take(row MoveRow, source string) error {
	switch row.Kind {
	case "begin":
		if row.Source != source {
			return fmt.Errorf("topic %s was begun by a migration of another store, %s: give the fleet another store.kafka.name", m.r.cfg.MoveTopic(), row.Source)
		}
		m.mine = true
	case "copy":
		m.next[sourceKey(row.Topic, row.Partition)] = row.Next
	case "done":
		m.done = true
	default:
		return fmt.Errorf("topic %s has a row of kind %q: a newer hub's", m.r.cfg.MoveTopic(), row.Kind)
	}
	return nil
}

// rows reads the migration topic.
func (r *Relay) rows(ctx context.Context, f func(MoveRow) error) error {
	p := part{r.cfg.MoveTopic(), 0}
	first, stable, err := r.c.bounds(ctx, p)
	if err != nil {
		return err
	}
	return r.c.read(ctx, p, first, stable, func(rec *kgo.Record) error {
		var row MoveRow
		if err := json.Unmarshal(rec.Value, &row); err != nil {
			return fmt.Errorf("%s at offset %d: %w", p.topic, rec.Offset, err)
		}
		return f(row)
	})
}

// noMove refuses a cluster whose records are still on their way into it.
func (r *Relay) noMove(ctx context.Context) error {
	n, err := r.Partitions(ctx, r.cfg.MoveTopic())
	if err != nil || n == 0 {
		return err
	}
	begun, done := false, false
	if err := r.rows(ctx, func(row MoveRow) error {
		begun, done = begun || row.Kind == "begin", done || row.Kind == "done"
		return nil
	}); err != nil {
		return err
	}
	if done { // it may have been killed before readers saw all of it: of progress, too
		p := &producer{c: r.c, txn: r.cfg.moveID(), log: r.cfg.Logger.Debug}
		return p.fence(ctx)
	}
	if begun {
		return fmt.Errorf("a migration into fleet %q is not finished: run tailrace hub migrate again, it goes on where it was (topic %s)", r.cfg.Name, r.cfg.MoveTopic())
	}
	return nil
}

// Begin fences every earlier Mover, aborts what it had not committed, makes the relay's
// topics, and says where to go on.
func (m *Mover) Begin(ctx context.Context, source string) error {
	if err := m.r.ensureSystem(ctx); err != nil {
		return err
	}
	if n, err := m.r.Partitions(ctx, m.r.cfg.MoveTopic()); err != nil {
		return err
	} else if n == 0 {
		if err := m.r.create(ctx, m.r.cfg.MoveTopic(), 1, map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "max.message.bytes": fmt.Sprint(maxMoved)}); err != nil {
			return err
		}
	}
	if err := m.pr.fence(ctx); err != nil {
		return err
	}
	m.next, m.mine, m.done = map[string]int64{}, false, false
	if err := m.r.rows(ctx, func(row MoveRow) error { return m.take(row, source) }); err != nil { // behind the fence: this is final
		return err
	}
	if !m.mine {
		m.mine = true
		return m.commit(ctx, MoveRow{Kind: "begin", Source: source})
	}
	return nil
}

// maxMoved bounds a batch: an embedded hub takes larger ones than a cluster does by default.
const maxMoved = 16 << 20

// Next is the offset to go on from, of the source's partition, and whether anything of it was copied.
func (m *Mover) Next(topic string, partition int) (int64, bool) {
	n, ok := m.next[sourceKey(topic, partition)]
	return n, ok
}

// Topic makes a topic for what is moved. One that is there is taken only by a Mover that may
// have made it.
func (m *Mover) Topic(ctx context.Context, name string, partitions int, configs map[string]string) error {
	n, err := m.r.Partitions(ctx, name)
	if err != nil {
		return err
	}
	if n == 0 {
		all := maps.Clone(configs)
		all["max.message.bytes"] = fmt.Sprint(maxMoved)
		return m.r.create(ctx, name, partitions, all)
	}
	if n < partitions {
		return fmt.Errorf("topic %q is in the cluster with %d partitions, %d are needed", name, n, partitions)
	}
	return nil
}

// Empty says whether a topic is not in the cluster, or holds nothing.
func (m *Mover) Empty(ctx context.Context, name string) (bool, error) {
	n, err := m.r.Partitions(ctx, name)
	if err != nil || n == 0 {
		return err == nil, err
	}
	ends, err := m.r.Offsets(ctx, []string{name}, AtStable)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(ends[name], func(p Place) bool { return p.Offset > 0 }), nil
}

// Moved is a piece of a source partition: whole batches with their offsets there.
type Moved struct {
	Topic     string
	Partition int
	Batches   []record.Batch // owned by the Mover from here on
	Next      int64          // of the source, behind them
	// To gives each record another place: of the loss ledger. nil = the same topic and partition.
	To func(key []byte) (topic string, partition int)
}

// LossPlace is where a row of the loss ledger belongs, by its node.
func (m *Mover) LossPlace(node []byte) (topic string, partition int) {
	return m.r.cfg.LossTopic(), m.r.Shard(string(node))
}

// moving is a batch of Copy on its way.
type moving struct {
	out
	of   int   // index of the piece
	olds []Run // with New counted from the batch's begin
}

// Copy stores pieces of different source partitions, in one transaction with where each ends.
func (m *Mover) Copy(ctx context.Context, pieces []Moved) (records int64, err error) {
	var lanes [][]*moving // one a target partition, in order
	at := map[part]int{}
	dec := record.NewDecompressor(0)
	defer dec.Close()
	rows := make([]MoveRow, len(pieces))
	for i, pc := range pieces {
		rows[i] = MoveRow{Kind: "copy", Topic: pc.Topic, Partition: pc.Partition, Next: pc.Next}
		for _, b := range pc.Batches {
			list, err := prepare(b, pc, dec)
			if err != nil {
				return 0, fmt.Errorf("%s/%d at offset %d: %w", pc.Topic, pc.Partition, b.BaseOffset(), err)
			}
			for _, x := range list {
				x.of = i
				k, ok := at[x.to]
				if !ok {
					k = len(lanes)
					at[x.to] = k
					lanes = append(lanes, nil)
				}
				lanes[k] = append(lanes[k], x)
				records += int64(x.batch.Count())
			}
		}
	}
	parts := append(slices.Collect(maps.Keys(at)), part{m.r.cfg.MoveTopic(), 0})
	if err := m.add(ctx, parts); err != nil {
		return 0, err
	}
	for len(lanes) > 0 {
		var outs []*out
		for i := range lanes {
			outs = append(outs, &lanes[i][0].out)
		}
		if err := m.pr.produce(ctx, outs); err != nil {
			return 0, err
		}
		for i := range lanes {
			x := lanes[i][0]
			if x.err != nil {
				return 0, fmt.Errorf("the cluster refuses a batch of %s/%d: %w", pieces[x.of].Topic, pieces[x.of].Partition, x.err)
			}
			if pieces[x.of].To == nil {
				for _, r := range x.olds {
					rows[x.of].run(Run{r.Old, r.New + x.at, r.N})
				}
			}
			lanes[i] = lanes[i][1:]
		}
		lanes = slices.DeleteFunc(lanes, func(l []*moving) bool { return len(l) == 0 })
	}
	if err := m.commit(ctx, rows...); err != nil {
		return 0, err
	}
	for _, r := range rows {
		m.next[sourceKey(r.Topic, r.Partition)] = r.Next
	}
	return records, nil
}

// run adds a run to a row, joined with the last where both sides go on.
func (row *MoveRow) run(r Run) {
	if n := len(row.Runs); n > 0 {
		if l := &row.Runs[n-1]; l.Old+l.N == r.Old && l.New+l.N == r.New {
			l.N += r.N
			return
		}
	}
	row.Runs = append(row.Runs, r)
}

// prepare makes of a stored batch what the cluster takes: offsets without holes. One that has
// none, and stays together, is not touched.
func prepare(b record.Batch, pc Moved, dec *record.Decompressor) ([]*moving, error) {
	if pc.To == nil && int64(b.Count()) == b.NextOffset()-b.BaseOffset() {
		b = slices.Clone(b)
		b.SetLeaderEpoch(-1)
		return []*moving{{out: out{to: part{pc.Topic, int32(pc.Partition)}, batch: b}, olds: []Run{{b.BaseOffset(), 0, int64(b.Count())}}}}, nil
	}
	type side struct {
		bl  record.Builder
		row MoveRow
		n   int64
	}
	sides := map[part]*side{}
	var order []part
	it := b.Iter(dec)
	for it.Next() {
		r := it.Record()
		to := part{pc.Topic, int32(pc.Partition)}
		if pc.To != nil {
			t, n := pc.To(r.Key)
			to = part{t, int32(n)}
		}
		s := sides[to]
		if s == nil {
			s = &side{}
			s.bl.Reset(nil)
			sides[to] = s
			order = append(order, to)
		}
		s.bl.AddEncoded(r.Timestamp, it.Tail())
		s.row.run(Run{r.Offset, s.n, 1})
		s.n++
	}
	if err := it.Err(); err != nil {
		return nil, err
	}
	var list []*moving
	for _, to := range order {
		s := sides[to]
		list = append(list, &moving{out: out{to: to, batch: record.Batch(record.Compress(nil, record.Batch(s.bl.Finish(0, 0))))}, olds: s.row.Runs})
	}
	return list, nil
}

func (m *Mover) add(ctx context.Context, parts []part) error {
	parked, err := m.pr.add(ctx, parts)
	for t, e := range parked {
		err = cmp.Or(err, fmt.Errorf("topic %q: %w", t, e))
	}
	return err
}

// commit writes rows and ends the transaction.
func (m *Mover) commit(ctx context.Context, rows ...MoveRow) error {
	to := part{m.r.cfg.MoveTopic(), 0}
	if err := m.add(ctx, []part{to}); err != nil {
		return err
	}
	var list []keyed
	for _, row := range rows {
		row.At = m.r.cfg.Now().UnixMilli()
		b, err := json.Marshal(row)
		if err != nil {
			return err
		}
		list = append(list, keyed{row.Kind, b})
	}
	if err := m.write(ctx, to, list); err != nil {
		return err
	}
	return m.pr.commit(ctx)
}

func (m *Mover) write(ctx context.Context, to part, list []keyed) error {
	g := generation{r: m.r, pr: m.pr}
	return g.write(ctx, to, list)
}

// MovedProgress is what an embedded hub holds of an origin.
type MovedProgress struct {
	Held                 uplink.RangeSet
	LastOffset           int64
	LastCRC              uint32
	MaxTime, Stored      int64
	BackNext, Backfilled int64
	Partition            int
}

// Progress, Epochs, Note and Entry gather what Finish writes.
func (m *Mover) Progress(o wire.Origin, p MovedProgress) {
	m.key(o.Node, keyProgress+keyOf(o).String(), saved.Encode(value{Held: p.Held, LastOffset: p.LastOffset, LastCRC: p.LastCRC, MaxTime: p.MaxTime,
		Stored: p.Stored, BackNext: p.BackNext, Backfilled: p.Backfilled, Partition: int32(p.Partition)}))
}

// Epochs are those adopted of a node.
func (m *Mover) Epochs(node string, list []wire.EpochInfo) {
	m.key(node, keyEpochs+node, saved.Encode(list))
}

// Note is what describes a node.
func (m *Mover) Note(node string, b []byte) { m.key(node, keyNote+node, slices.Clone(b)) }

// Entry is what else is kept of a node.
func (m *Mover) Entry(node, key string, b []byte) {
	m.key(node, keyEntry+node+"/"+key, slices.Clone(b))
}

func (m *Mover) key(node, key string, val []byte) {
	n := int32(m.r.Shard(node))
	m.keys[n] = append(m.keys[n], keyed{key, val})
}

// Finish writes what was gathered, and "done", in one transaction.
func (m *Mover) Finish(ctx context.Context) error {
	var parts []part
	for n := range m.keys {
		parts = append(parts, part{m.r.cfg.ProgressTopic(), n})
	}
	if err := m.add(ctx, parts); err != nil {
		return err
	}
	for n, list := range m.keys {
		if err := m.write(ctx, part{m.r.cfg.ProgressTopic(), n}, list); err != nil {
			return err
		}
	}
	if err := m.commit(ctx, MoveRow{Kind: "done"}); err != nil {
		return err
	}
	m.done = true
	return m.pr.fence(ctx) // what was committed is seen by readers when this returns
}
