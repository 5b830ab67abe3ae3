package edge

import (
	"crypto/rand"
	"fmt"
	"math"
	"net/http"
	"path"
	"slices"

	"tailrace/storage"
	"tailrace/storage/storehttp"
	"tailrace/uplink/bundle"
	"tailrace/uplink/wire"
)

// serveBundle writes a bundle (package bundle) for a hub that the link does not reach.
//
//	topic  a name or a pattern (path.Match), repeated; none = every topic
//	from   time, RFC 3339 or ms since 1970: the first record at or after it; absent = what the hub has not acknowledged
//	to     time: up to the first record at or after it; absent = everything durable
//	all=1  from the first record held
//
// A connection that ends without the last chunk carried half a bundle: what it holds
// is good, and a hub takes it.
func (n *Node) serveBundle(w http.ResponseWriter, r *http.Request) {
	pair := n.uplinkPair.Load()
	if pair == nil {
		storehttp.WriteError(w, &storehttp.Error{Status: http.StatusConflict, Code: "no_identity", Message: "this node has no uplink certificate, and a bundle is signed with its key",
			Hint: "set uplink.tls in the node's configuration"})
		return
	}
	sel, err := n.bundleRange(r)
	if err != nil {
		storehttp.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/vnd.tailrace.bundle")
	w.Header().Set("Cache-Control", "no-store")
	sum, werr := bundle.Write(r.Context(), w, n.source, bundle.Options{
		Node: n.cfg.Node, Identity: bundle.Identity{Certs: pair.Certificate, Key: pair.PrivateKey}, Select: sel,
		Created: wire.Clock{UnixNano: n.cfg.Now().UnixNano(), Trusted: n.clockTrusted()}, Software: "tailrace-edge " + n.cfg.Version,
		Store: n.source.knownStore(), Rand: rand.Reader,
	})
	if werr != nil {
		n.logger.Warn("bundle not finished", "remote", r.RemoteAddr, "records", sum.Records, "err", werr)
		panic(http.ErrAbortHandler) // the reader must not take it for whole
	}
	n.logger.Info("bundle exported", "remote", r.RemoteAddr, "records", sum.Records, "bytes", sum.Bytes, "lost", sum.Lost)
}

func (n *Node) bundleRange(r *http.Request) (func(wire.PartitionInfo) (int64, int64), *storehttp.Error) {
	q := r.URL.Query()
	for k := range q {
		if !slices.Contains([]string{"topic", "from", "to", "all"}, k) {
			return nil, &storehttp.Error{Status: http.StatusBadRequest, Code: "unknown_parameter", Message: fmt.Sprintf("there is no parameter %q", k), Hint: "parameters are topic, from, to, all"}
		}
	}
	topics := q["topic"]
	matched := len(topics) == 0
	for _, t := range topics {
		if _, err := path.Match(t, ""); err != nil {
			return nil, &storehttp.Error{Status: http.StatusBadRequest, Code: "bad_topic", Message: fmt.Sprintf("topic=%q: %v", t, err)}
		}
		matched = matched || slices.ContainsFunc(n.store.Topics(), func(have *storage.Topic) bool { ok, _ := path.Match(t, have.Name()); return ok })
	}
	if !matched {
		return nil, &storehttp.Error{Status: http.StatusNotFound, Code: "unknown_topic", Message: fmt.Sprintf("no topic of this node matches %q", topics), Hint: "GET /api/v1/topics lists them"}
	}
	var from, to int64 = math.MinInt64, math.MaxInt64
	for name, at := range map[string]*int64{"from": &from, "to": &to} {
		if s := q.Get(name); s != "" {
			ms, err := storehttp.ParseTime(name, s)
			if err != nil {
				return nil, &storehttp.Error{Status: http.StatusBadRequest, Code: "bad_time", Message: err.Error()}
			}
			*at = ms
		}
	}
	return func(info wire.PartitionInfo) (int64, int64) {
		if len(topics) > 0 && !slices.ContainsFunc(topics, func(t string) bool { ok, _ := path.Match(t, info.Topic); return ok }) {
			return 0, 0
		}
		p := n.source.partition(info.Topic, info.Partition)
		if p == nil {
			return 0, 0
		}
		lo, hi := n.source.ackedOnly(p), p.HighWatermark()
		switch {
		case from != math.MinInt64:
			lo = offsetAt(p, from, hi)
		case q.Get("all") == "1":
			lo = p.Start()
		}
		if to != math.MaxInt64 {
			hi = offsetAt(p, to, hi)
		}
		return lo, hi
	}, nil
}

// offsetAt is the first offset with a time of at least ms; end where there is none.
func offsetAt(p *storage.Partition, ms, end int64) int64 {
	off, _, ok, err := p.OffsetForTime(ms)
	if err != nil || !ok {
		return end
	}
	return off
}
