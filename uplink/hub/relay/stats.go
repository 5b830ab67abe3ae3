package relay

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Stats are totals since Open, and what is at the moment.
type Stats struct {
	Records, Bytes, Transactions, Takeovers int64
	Batches, BytesStored                    int64         // as written to the cluster
	Dead                                    int64         // records that the cluster refused
	Aborted                                 int64         // transactions given up, and read again what is true
	Fenced                                  int64         // of them because another hub had taken the shard over
	Committing                              time.Duration // in transactions that were committed
	TakingOver                              time.Duration // in takeovers that succeeded
	LastTakeover                            time.Duration
	Throttled                               time.Duration // for which brokers told the hub to wait
	Requests                                int64         // to brokers

	Served, Waiting int           // shards served, and being taken over
	Connections     int64         // to brokers, open now
	QueuedBytes     int64         // of batches waiting for a commit
	Lag             time.Duration // how long the oldest of them waits
}

type counters struct {
	records, bytes, transactions, takeovers, dead, batches, bytesStored, aborted, fenced, committing, takingOver, lastTakeover atomic.Int64
}

// wireStats counts what the clients do on the wire.
type wireStats struct{ connections, throttled, requests atomic.Int64 }

var (
	_ kgo.HookBrokerConnect    = (*wireStats)(nil)
	_ kgo.HookBrokerDisconnect = (*wireStats)(nil)
	_ kgo.HookBrokerThrottle   = (*wireStats)(nil)
	_ kgo.HookBrokerWrite      = (*wireStats)(nil)
)

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (w *wireStats) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err == nil {
		w.connections.Add(1)
	}
}

// OnBrokerDisconnect implements kgo.HookBrokerDisconnect.
func (w *wireStats) OnBrokerDisconnect(kgo.BrokerMetadata, net.Conn) { w.connections.Add(-1) }

// OnBrokerThrottle implements kgo.HookBrokerThrottle.
func (w *wireStats) OnBrokerThrottle(_ kgo.BrokerMetadata, d time.Duration, _ bool) {
	w.throttled.Add(int64(d))
}

// OnBrokerWrite implements kgo.HookBrokerWrite.
func (w *wireStats) OnBrokerWrite(kgo.BrokerMetadata, int16, int, time.Duration, time.Duration, error) {
	w.requests.Add(1)
}

// Stats returns totals since Open, and what is at the moment.
func (r *Relay) Stats() Stats {
	s, w := &r.stats, r.cfg.wire
	out := Stats{Records: s.records.Load(), Bytes: s.bytes.Load(), Transactions: s.transactions.Load(), Takeovers: s.takeovers.Load(),
		Batches: s.batches.Load(), BytesStored: s.bytesStored.Load(), Dead: s.dead.Load(), Aborted: s.aborted.Load(), Fenced: s.fenced.Load(),
		Committing: time.Duration(s.committing.Load()), TakingOver: time.Duration(s.takingOver.Load()), LastTakeover: time.Duration(s.lastTakeover.Load()),
		Throttled: time.Duration(w.throttled.Load()), Requests: w.requests.Load(), Connections: w.connections.Load()}
	now := time.Now()
	for _, sh := range r.shards {
		sh.mu.Lock()
		g, mine := sh.gen, sh.stop != nil
		sh.mu.Unlock()
		if g == nil {
			if mine {
				out.Waiting++
			}
			continue
		}
		out.Served++
		g.mu.Lock()
		for _, w := range g.waiters {
			out.QueuedBytes += w.bytes
		}
		if len(g.waiters) > 0 {
			out.Lag = max(out.Lag, now.Sub(g.waiters[0].at))
		}
		g.mu.Unlock()
	}
	return out
}

// gaveUp counts the end of a generation that was not asked for.
func (r *Relay) gaveUp(err error) {
	r.stats.aborted.Add(1)
	if errors.Is(err, kerr.InvalidProducerEpoch) || errors.Is(err, kerr.ProducerFenced) {
		r.stats.fenced.Add(1)
	}
}
