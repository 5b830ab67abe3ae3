package hub

import (
	"context"

	"tailrace/storage"
	"tailrace/storage/storehttp"
	"tailrace/uplink/wire"
)

// engine is where a hub's records are: Embedded on its own disk, or clustered in a Kafka
// cluster. It is chosen once, in New; beside Central it is what the hub asks of either.
type engine interface {
	Central

	// serves returns nil when a node is served here, else a reason that the node may be told.
	serves(ctx context.Context, node string) error
	// known are the epochs adopted of a node, oldest first.
	known(node string) ([]wire.EpochInfo, error)
	// log is where the API reads and writes; create makes a topic in it by its rule.
	log() storehttp.Log
	create(ctx context.Context, topic string) (storehttp.Topic, error)
	// settled returns nil when everything is served that is to be served here.
	settled() error
	// allowed says whether a topic exists or a rule makes it.
	allowed(topic string) bool
	// reserved says whether no node may write to a topic.
	reserved(topic string) bool
	// setOrder says how the ranges of a node's partition may come; of orderTwo an error says
	// why there can be no companion topic.
	setOrder(k assignKey, o ordering)
	companion(topic string) error
	// resume lets a node's streams go on after something was not stored.
	resume(node string)
	// raise raises the leader epoch that consumers see; records that were here are not any more.
	raise(epoch int32) error
	// saveNote stores what describes a node; loadNotes gives back what is stored.
	saveNote(ctx context.Context, node string, value []byte, wait bool) error
	// saveEntry stores what is of a node beside its description, nil = forgets it; done may be
	// nil, and hears when it is durable.
	saveEntry(node, key string, value []byte, done func(error))

	Losses(node, topic string, limit int) []LossRow
	LossTotals() map[LossKey]LossTotal
	Stats() EngineStats
	Close()
}

var _ engine = (*Embedded)(nil)

func (e *Embedded) serves(context.Context, string) error { return nil }

func (e *Embedded) known(node string) ([]wire.EpochInfo, error) { return e.Epochs(node), nil }

func (e *Embedded) log() storehttp.Log { return storehttp.OfStore(e.store) }

func (e *Embedded) create(_ context.Context, topic string) (storehttp.Topic, error) {
	t, err := e.EnsureTopic(topic)
	if err != nil {
		return nil, err
	}
	return storehttp.OfTopic(t), nil
}

func (e *Embedded) settled() error { return nil }

func (e *Embedded) allowed(topic string) bool {
	if _, ok := e.store.Topic(topic); ok {
		return true
	}
	_, ok := e.rule(topic)
	return ok
}

func (e *Embedded) reserved(topic string) bool { return reservedTopic(topic) }

func (e *Embedded) companion(topic string) error {
	_, err := e.Companion(topic)
	return err
}

func (e *Embedded) raise(epoch int32) error { return e.store.RaiseEpoch(epoch) }

func (e *Embedded) saveNote(ctx context.Context, node string, value []byte, wait bool) error {
	a := e.store.NewAppend("")
	a.Set(storage.KindRegistry, nodePrefix+node, value)
	if wait {
		return e.store.Commit(ctx, a)
	}
	e.store.Submit(a, func(_ *storage.Append, err error) {
		if err != nil {
			e.cfg.Logger.Warn("node description not saved", "node", node, "error", err)
		}
	})
	return nil
}

func (e *Embedded) saveEntry(_, key string, value []byte, done func(error)) {
	a := e.store.NewAppend("")
	a.Set(storage.KindRegistry, key, value)
	e.store.Submit(a, func(_ *storage.Append, err error) {
		if err != nil {
			e.cfg.Logger.Warn("entry not saved", "key", key, "error", err)
		}
		if done != nil {
			done(err)
		}
	})
}
