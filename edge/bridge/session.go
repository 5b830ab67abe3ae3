package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"
)

const (
	// ackInterval: paho sends manual acks by a ticker. Throughput is window over
	// interval: at its default of 50 ms and a window of 20 that is 400 messages/s.
	ackInterval = time.Millisecond
	// burstMessages and burstBytes bound one burst; burstsInFlight how many wait for the disk.
	burstMessages  = 256
	burstBytes     = 1 << 20
	burstsInFlight = 8
)

// pending is a burst under way, or its outcome.
type pending struct {
	messages []*paho.Publish // what to acknowledge
	added    int             // tried to store: neither known nor waiting in again
	stored   int
	err      error
}

// session runs one connection until it ends. up: the broker had accepted us.
func (b *Bridge) session(ctx context.Context, to broker) (up bool, err error) {
	b.note(false, to.address, nil)
	nc, err := b.dial(ctx, to)
	if err != nil {
		return false, fmt.Errorf("connect to %s: %w", to.address, err)
	}
	wrapped := newConn(nc, b.cfg.MaxPacketBytes, b.cfg.WriteTimeout)
	defer wrapped.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// incoming: paho's router waits when it is full, and so the socket and the broker.
	incoming := make(chan *paho.Publish, b.cfg.ReceiveMaximum)
	results := make(chan pending, burstsInFlight)

	// A fresh session state for each connection: with the old one paho would take a
	// redelivered QoS 2 message for a known one, though it never became durable.
	mem := state.NewInMemory()
	defer mem.Close()
	client := paho.NewClient(paho.ClientConfig{
		Conn: wrapped, Session: mem,
		EnableManualAcknowledgment: true,
		SendAcksInterval:           ackInterval,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
			select {
			case incoming <- r.Packet:
			case <-ctx.Done():
			}
			return true, nil
		}},
		OnClientError: func(err error) { cancel(fmt.Errorf("connection lost: %w", err)) },
		OnServerDisconnect: func(d *paho.Disconnect) {
			cancel(fmt.Errorf("broker sent DISCONNECT, reason 0x%02X", d.ReasonCode))
		},
	})
	present, err := b.login(ctx, client)
	if err != nil {
		return false, err
	}
	memory, _ := b.cfg.Sink.(Memory)
	if memory != nil {
		memory.Session(present)
	}
	if !present {
		memory = nil
	}
	b.waiting.Store(0)
	// Before subscribing: a resumed session delivers at once, and paho reads the SUBACK
	// only when what came before it has found room.
	slots := make(chan struct{}, burstsInFlight)
	done := make(chan struct{})
	go b.pump(ctx, incoming, results, slots, memory)
	go func() {
		defer close(done)
		b.acknowledge(client, results, slots, cancel)
	}()
	if err := b.subscribe(ctx, client); err != nil {
		cancel(err)
	} else {
		up = true
		b.established.Store(true)
		b.note(true, to.address, nil)
		b.cfg.Logger.Info("connected to broker", "broker", to.address)
	}

	<-ctx.Done()
	err = context.Cause(ctx)
	// What is with the disk already gets its acknowledgement: pump hands over nothing
	// more, waits for its bursts and closes results; then some ticks of paho's acker.
	<-done
	if errors.Is(err, context.Canceled) {
		time.Sleep(3 * ackInterval)
		if derr := client.Disconnect(&paho.Disconnect{ReasonCode: 0}); derr != nil {
			b.cfg.Logger.Debug("disconnect", "err", derr)
		}
	}
	wrapped.Close()
	<-client.Done()
	return up, err
}

func (b *Bridge) dial(ctx context.Context, to broker) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.DialTimeout)
	defer cancel()
	nc, err := b.cfg.Dial(ctx, "tcp", to.address)
	if err != nil || !to.tls {
		return nc, err
	}
	tc := b.cfg.TLS.Clone()
	if tc == nil {
		tc = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if tc.ServerName == "" {
		tc.ServerName = to.host
	}
	t := tls.Client(nc, tc)
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return t, nil
}

func (b *Bridge) login(ctx context.Context, client *paho.Client) (present bool, err error) {
	expiry, receive, packet := uint32(b.cfg.SessionExpiry/time.Second), uint16(b.cfg.ReceiveMaximum), uint32(b.cfg.MaxPacketBytes)
	cp := &paho.Connect{
		ClientID: b.cfg.ClientID, CleanStart: false, KeepAlive: uint16(b.cfg.KeepAlive / time.Second),
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: &receive, MaximumPacketSize: &packet},
	}
	if b.cfg.Username != "" {
		cp.Username, cp.UsernameFlag = b.cfg.Username, true
	}
	if b.cfg.Password != nil {
		pw, err := b.cfg.Password()
		if err != nil {
			return false, fmt.Errorf("password: %w", err)
		}
		cp.Password, cp.PasswordFlag = pw, true
	}
	ca, err := client.Connect(ctx, cp)
	if err != nil {
		if ca != nil {
			return false, fmt.Errorf("broker refused the connection, reason 0x%02X: %w", ca.ReasonCode, err)
		}
		return false, fmt.Errorf("log in: %w", err)
	}
	if p := ca.Properties; p != nil && p.SessionExpiryInterval != nil && *p.SessionExpiryInterval < expiry {
		b.cfg.Logger.Warn("the broker keeps our session for less time than wanted", "wanted_s", expiry, "granted_s", *p.SessionExpiryInterval)
	}
	if !ca.SessionPresent && b.established.Load() {
		b.lostState.Add(1)
		b.cfg.Logger.Warn("the broker has no session of ours: messages published while we were away are not coming")
	}
	return ca.SessionPresent, nil
}

func (b *Bridge) subscribe(ctx context.Context, client *paho.Client) error {
	sub := &paho.Subscribe{}
	for _, s := range b.cfg.Subscriptions {
		// RetainHandling 1: retained messages come once, with a new subscription, not at
		// every reconnect. RetainAsPublished keeps the flag for the record's header.
		sub.Subscriptions = append(sub.Subscriptions, paho.SubscribeOptions{Topic: s.Filter, QoS: s.QoS, RetainHandling: 1, RetainAsPublished: true})
	}
	sa, err := client.Subscribe(ctx, sub)
	if err != nil {
		if sa != nil {
			return fmt.Errorf("subscribe: reasons %x: %w", sa.Reasons, err)
		}
		return fmt.Errorf("subscribe: %w", err)
	}
	for i, r := range sa.Reasons {
		if i < len(b.cfg.Subscriptions) && r < b.cfg.Subscriptions[i].QoS {
			b.cfg.Logger.Warn("the broker granted less than the wanted QoS", "filter", b.cfg.Subscriptions[i].Filter, "wanted", b.cfg.Subscriptions[i].QoS, "granted", r)
		}
	}
	return nil
}

// pump gathers what has arrived into bursts. A slot is taken for each burst and
// given back when its outcome was taken out of results; results holds as many, so
// that done never blocks. After ctx's end pump waits for all outcomes and closes results.
func (b *Bridge) pump(ctx context.Context, incoming <-chan *paho.Publish, results chan<- pending, slots chan struct{}, memory Memory) {
	defer func() {
		for range burstsInFlight {
			slots <- struct{}{}
		}
		close(results)
	}()
	var again []*paho.Publish // what a resumed session has begun with
	if memory != nil {
		again = b.resent(ctx, incoming)
		if known := b.known(memory, again); known > 0 {
			select {
			case <-ctx.Done():
				return
			case slots <- struct{}{}:
			}
			results <- pending{messages: again[:known]}
			again = again[known:]
		}
	}
	for {
		var first *paho.Publish
		if len(again) > 0 {
			first, again = again[0], again[1:]
		} else {
			select {
			case <-ctx.Done():
				return
			case first = <-incoming:
			}
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		burst := b.cfg.Sink.Begin()
		var p pending
		now := b.cfg.Now()
		size := 0
		for m := first; m != nil; {
			if p.err = b.add(burst, m, now, &p); p.err != nil {
				break
			}
			size += len(m.Payload) + len(m.Topic)
			m = nil
			if len(p.messages) < burstMessages && size < burstBytes {
				if len(again) > 0 {
					m, again = again[0], again[1:]
					continue
				}
				select {
				case m = <-incoming:
				default:
				}
			}
		}
		if p.err != nil || p.stored == 0 { // the burst is dropped whole, or nothing to make durable: only refusals to acknowledge
			results <- p
			continue
		}
		burst.Commit(func(err error) {
			p.err = err
			results <- p
		})
	}
}

// A broker sends again at once what a resumed session has in flight: its end is the
// first message without DUP, or this long nothing.
const (
	resentQuiet = 300 * time.Millisecond
	resentAtAll = 2 * time.Second
)

// resent takes the messages that a resumed session begins with, up to the first that is
// not marked DUP, which it takes, too. No more than ReceiveMaximum can be in flight.
func (b *Bridge) resent(ctx context.Context, incoming <-chan *paho.Publish) (again []*paho.Publish) {
	var quiet, end <-chan time.Time // from the first message on
	for len(again) < b.cfg.ReceiveMaximum {
		select {
		case <-ctx.Done():
			return again
		case <-quiet:
			return again
		case <-end:
			return again
		case m := <-incoming:
			again = append(again, m)
			if !m.Duplicate() || m.QoS == 0 {
				return again
			}
			quiet = time.After(resentQuiet)
			if end == nil {
				end = time.After(resentAtAll)
			}
		}
	}
	return again
}

// known asks which of the first messages are durable, and counts them.
func (b *Bridge) known(memory Memory, again []*paho.Publish) int {
	now := b.cfg.Now()
	var dups []Message
	for _, m := range again {
		if m.Duplicate() && m.QoS > 0 {
			dups = append(dups, Message{Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, PacketID: m.PacketID, Retain: m.Retain, Dup: true, Arrival: now})
		}
	}
	if len(dups) == 0 {
		return 0
	}
	n := memory.Known(dups)
	for _, m := range again[:n] {
		b.count(m, now)
	}
	b.duplicates.Add(uint64(n))
	if n > 0 {
		b.cfg.Logger.Info("redelivered messages are durable already", "known", n, "redelivered", len(dups))
	}
	return n
}

func (b *Bridge) count(m *paho.Publish, now time.Time) {
	b.received.Add(1)
	b.bytes.Add(uint64(len(m.Payload)))
	b.lastAt.Store(now.UnixNano())
	if m.Duplicate() {
		b.redelivery.Add(1)
	}
}

// add puts one message into the burst; an error means: none of the burst now, later again.
func (b *Bridge) add(burst Burst, m *paho.Publish, now time.Time, p *pending) error {
	b.count(m, now)
	b.waiting.Add(1)
	p.added++
	msg := Message{Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, PacketID: m.PacketID, Retain: m.Retain, Dup: m.Duplicate(), Arrival: now}
	if mp := m.Properties; mp != nil {
		msg.ContentType, msg.ResponseTopic, msg.Correlation = mp.ContentType, mp.ResponseTopic, mp.CorrelationData
		for _, u := range mp.User {
			msg.User = append(msg.User, UserProperty{u.Key, u.Value})
		}
	}
	if err := burst.Add(&msg); errors.Is(err, ErrLater) {
		return err
	} else if err != nil {
		// For good: without an answer the broker would send it again for ever, and nothing behind it.
		if n := b.refused.Add(1); n&(n-1) == 0 { // 1, 2, 4, 8, …: seen, and not a flood
			b.cfg.Logger.Warn("message cannot be stored and is dropped", "topic", m.Topic, "err", err, "refused_so_far", n)
		}
	} else {
		p.stored++
	}
	p.messages = append(p.messages, m)
	return nil
}

// acknowledge tells the broker about what is durable, in order. A failed burst is
// never acknowledged: the connection ends, and the broker sends it again later.
func (b *Bridge) acknowledge(client *paho.Client, results <-chan pending, slots <-chan struct{}, cancel context.CancelCauseFunc) {
	for p := range results {
		<-slots
		b.waiting.Add(-int64(p.added))
		if p.err != nil {
			b.failed.Add(uint64(p.stored))
			cancel(fmt.Errorf("%d messages could not be stored and stay with the broker: %w", p.stored, p.err))
			continue
		}
		b.stored.Add(uint64(p.stored))
		for _, m := range p.messages {
			// ErrPacketNotFound: the connection is gone; the broker delivers again.
			_ = client.Ack(m)
		}
	}
}
