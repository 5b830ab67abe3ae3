package kafka

import (
	"fmt"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/twmb/franz-go/pkg/kerr"
)

// stats are the listener's metrics; each name says what to conclude from it.
type stats struct {
	set      *metrics.Set
	bytesIn  *metrics.Counter
	bytesOut *metrics.Counter
	refused  *metrics.Counter // raise max_conns, or find who opens so many
	broken   *metrics.Counter // connections closed for a fault of the client
	requests map[int16]*metrics.Counter
	seconds  map[int16]*metrics.Summary // for Fetch it includes waiting for records, for Produce the fsync
	produced *metrics.Counter           // records made durable for producers
	fetched  *metrics.Counter           // bytes of batches sent
	denied   *metrics.Counter           // logins refused: somebody guesses, or a client has an old password
	starved  *metrics.Counter           // fetches cut short because ResponseBytes was used up
	names    map[int16]string
}

func newStats(set *metrics.Set, s *Server) stats {
	st := stats{
		set:      set,
		bytesIn:  set.NewCounter("tailrace_hub_kafka_received_bytes_total"),
		bytesOut: set.NewCounter("tailrace_hub_kafka_sent_bytes_total"),
		refused:  set.NewCounter("tailrace_hub_kafka_connections_refused_total"),
		broken:   set.NewCounter("tailrace_hub_kafka_connections_failed_total"),
		produced: set.NewCounter("tailrace_hub_kafka_produced_records_total"),
		fetched:  set.NewCounter("tailrace_hub_kafka_fetched_bytes_total"),
		denied:   set.NewCounter("tailrace_hub_kafka_logins_refused_total"),
		starved:  set.NewCounter("tailrace_hub_kafka_fetches_cut_total"),
		requests: make(map[int16]*metrics.Counter), seconds: make(map[int16]*metrics.Summary), names: make(map[int16]string),
	}
	set.NewGauge("tailrace_hub_kafka_connections", func() float64 { return float64(s.Conns()) })
	for key, a := range s.apis {
		st.names[key] = a.name
		st.requests[key] = set.NewCounter(fmt.Sprintf("tailrace_hub_kafka_requests_total{api=%q}", a.name))
		st.seconds[key] = set.NewSummary(fmt.Sprintf("tailrace_hub_kafka_request_seconds{api=%q}", a.name))
	}
	return st
}

func (st *stats) request(key int16) { st.requests[key].Inc() }

func (st *stats) took(key int16, since time.Time) { st.seconds[key].UpdateDuration(since) }

// fault counts an error code by api and name; both sets are closed.
func (st *stats) fault(key int16, e *kerr.Error) {
	st.set.GetOrCreateCounter(fmt.Sprintf("tailrace_hub_kafka_errors_total{api=%q,error=%q}", st.names[key], e.Message)).Inc()
}
