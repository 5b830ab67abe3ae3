package hub

import (
	"context"
	"net"
)

// kafkaServer speaks the Kafka protocol on the hub's store.
type kafkaServer interface {
	Serve(ctx context.Context, ln net.Listener) error
}

func (h *Hub) newKafka() (kafkaServer, error) { return idle{}, nil }

type idle struct{}

func (idle) Serve(ctx context.Context, ln net.Listener) error { <-ctx.Done(); return nil }

func (h *Hub) serveKafka(ctx context.Context) error { return h.kafka.Serve(ctx, h.kafkaLn) }
