package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// QUIC is tried first. Where it does not come through within fallbackAfter, TLS over TCP
// is tried beside it, and what works first is used. A handshake that works proves little,
// though: networks throttle UDP. What decides is progress, measured while a backlog waits:
//
//   - over QUIC with heavy loss: TCP is tried, and kept when it carries more
//   - over TCP: QUIC is tried again every ClientConfig.ReturnAfter, and kept unless TCP had
//     carried twice as much; then the next try waits twice as long
const (
	fallbackAfter = 3 * time.Second
	heavyLoss     = 0.08
	measureFor    = 10 * time.Second
	maxReturn     = 2 * time.Hour
	trialEvery    = 10 * time.Minute
)

// measurement is what a session carried while a backlog waited all the time.
type measurement struct {
	rate float64 // raw bytes per second that became durable
	loss float64
}

// choice remembers what was measured on either transport. Owned by Client.Run.
type choice struct {
	quicRate, tcpRate float64
	returnIn          time.Duration
	returnAt          time.Time // when to try QUIC again
	trialAt           time.Time // when TCP may be tried because of loss
	only              Transport // the next dial; empty = whatever works
	overTCP           bool      // the session before was
	returned          bool      // the present QUIC session began as a return from TCP
}

// judge takes a measurement; true = change to choice.only.
func (d *dialer) judge(s *session, m measurement, now time.Time) bool {
	ch := &d.choice
	if len(d.c.cfg.Fallback) == 0 {
		return false
	}
	switch s.conn.transport() {
	case OverQUIC:
		worse := ch.returned && ch.tcpRate > 2*m.rate
		if worse {
			ch.returnIn = min(2*ch.returnIn, maxReturn)
		}
		ch.returned = false
		if worse || m.loss > heavyLoss && !now.Before(ch.trialAt) {
			ch.quicRate, ch.only, ch.trialAt = m.rate, OverTCP, now.Add(trialEvery)
			d.c.cfg.Logger.Info("trying TCP", "quic_bytes_per_second", int64(m.rate), "loss", m.loss)
			return true
		}
	case OverTCP:
		ch.tcpRate = m.rate
		if ch.quicRate*1.1 > m.rate { // no better: QUIC it is
			ch.quicRate, ch.only, ch.trialAt = 0, OverQUIC, now.Add(6*trialEvery)
			return true
		}
		ch.quicRate = 0
	}
	return false
}

// began notes what a new session runs over.
func (d *dialer) began(s *session, now time.Time) {
	ch := &d.choice
	ch.returnIn = max(ch.returnIn, d.c.cfg.ReturnAfter)
	if ch.overTCP = s.conn.transport() == OverTCP; ch.overTCP {
		if ch.returned { // QUIC did not last
			ch.returnIn, ch.returned = min(2*ch.returnIn, maxReturn), false
		}
		ch.returnAt = now.Add(ch.returnIn)
	}
}

// connection is a carrier and the way to more of its kind.
type connection struct {
	carrier
	again func(context.Context) (carrier, error)
	tcp   bool
	err   error
}

// turn is for how long a node puts its next dial over TCP off after the hub was away. A probe tells a node that the hub was restarted, and over what to spread
// its return; a node whose UDP does not pass learns it otherwise: the hub said that it ends, or there was nobody at
// its port. All of these nodes learn it at once.
func (d *dialer) turn() time.Duration {
	return time.Duration(d.c.cfg.Rand.Int64N(int64(d.tcpSpread) + 1))
}

// connect dials hub over whatever works, or over choice.only.
func (d *dialer) connect(ctx context.Context, hub string) (connection, error) {
	only := d.choice.only
	d.choice.only = ""
	fallback := d.c.cfg.Fallback
	if len(fallback) == 0 || only == OverQUIC {
		c := d.dialQUIC(ctx, hub)
		return c, c.err
	}
	tcp := fallback[d.at%len(fallback)]
	if only == OverTCP {
		c := d.dialTCP(ctx, tcp)
		return c, c.err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	turn := d.turn()
	// The connections outlive ctx; only their dialling ends with it.
	results := make(chan connection, 2)
	go func() { results <- d.dialQUIC(ctx, hub) }()
	patience := fallbackAfter
	if d.choice.overTCP {
		patience /= 10 // what worked last is not kept waiting
	}
	wait := time.NewTimer(max(patience, time.Until(d.tcpFrom)))
	defer wait.Stop()
	dialling, started := 1, false
	var first error
	for dialling > 0 || !started {
		startTCP := false
		select {
		case <-wait.C:
			startTCP = true
		case c := <-results:
			dialling--
			var r *restarted
			if c.err == nil || errors.As(c.err, &r) || !c.tcp && isBusy(c.err) { // TCP would be no way around the hub's wish
				cancel()
				for ; dialling > 0; dialling-- { // nothing of d is used beside us any more
					if late := <-results; late.err == nil {
						late.close(0, "")
					}
				}
				return c, c.err
			}
			first = errors.Join(first, c.err)
			if c.tcp && d.choice.overTCP && !isTimeout(c.err) {
				d.tcpFrom = time.Now().Add(turn)
			}
			if startTCP = !started; startTCP && time.Now().Before(d.tcpFrom) {
				return connection{}, first
			}
		}
		if startTCP && !started {
			started = true
			dialling++
			go func() { results <- d.dialTCP(ctx, tcp) }()
		}
	}
	return connection{}, first
}

func (d *dialer) clientTLS(over Transport, hub string) (*tls.Config, error) {
	conf := d.c.cfg.TLS.Clone()
	if conf.ServerName == "" {
		var err error
		if conf.ServerName, _, err = net.SplitHostPort(hub); err != nil {
			return nil, err
		}
	}
	conf.ClientSessionCache = d.c.tickets.at(over, hub, conf)
	conf.VerifyConnection = verifyHub(conf.VerifyConnection)
	if at := d.c.cfg.CertTime; at != nil {
		conf.InsecureSkipVerify = true // verifyAt does it all
		conf.VerifyConnection = verifyAt(at, conf.RootCAs, conf.ServerName, conf.VerifyConnection)
	}
	return conf, nil
}

func (d *dialer) dialQUIC(ctx context.Context, hub string) connection {
	c := d.c
	if err := d.socket(); err != nil {
		return connection{err: err}
	}
	addr, err := c.cfg.Resolve(hub)
	if err != nil {
		return connection{err: err}
	}
	conf, err := d.clientTLS(OverQUIC, hub)
	if err != nil {
		return connection{err: err}
	}
	verify := conf.VerifyConnection
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		d.heard.Store(true)
		return verify(cs)
	}
	qc := quicConfig(c.cfg.IdleTimeout, c.cfg.DialTimeout)
	qc.MaxIncomingStreams, qc.MaxIncomingUniStreams = -1, -1
	d.addr = addr
	conn, err := d.handshake(ctx, hub, conf, qc)
	tr := d.tr
	return connection{carrier: conn, err: err, again: func(ctx context.Context) (carrier, error) {
		conn, err := tr.Dial(ctx, addr, conf, qc)
		if err != nil {
			return nil, err
		}
		return quicConn{conn}, nil
	}}
}

func (d *dialer) dialTCP(ctx context.Context, hub string) connection {
	cfg := &d.c.cfg
	conf, err := d.clientTLS(OverTCP, hub)
	if err != nil {
		return connection{err: err}
	}
	again := func(ctx context.Context) (carrier, error) {
		ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
		defer cancel()
		raw, err := cfg.DialTCP(ctx, hub)
		if err != nil {
			return nil, err
		}
		tc := tls.Client(raw, conf)
		if err := tc.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return newTCPConn(context.WithoutCancel(ctx), tc, cfg.IdleTimeout), nil
	}
	conn, err := again(ctx)
	if err != nil {
		err = fmt.Errorf("tcp %s: %w", hub, err)
	}
	return connection{carrier: conn, err: err, again: again, tcp: true}
}

// dialTCP dials, through an HTTP proxy's CONNECT where proxy is set: http://[user:password@]host:port.
func dialTCP(proxy *url.URL) func(context.Context, string) (net.Conn, error) {
	dialer := &net.Dialer{KeepAlive: tcpKeepAlive}
	return func(ctx context.Context, hub string) (net.Conn, error) {
		if proxy == nil {
			return dialer.DialContext(ctx, "tcp", hub)
		}
		c, err := dialer.DialContext(ctx, "tcp", proxy.Host)
		if err != nil {
			return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
		}
		if err := httpConnect(ctx, c, proxy, hub); err != nil {
			c.Close()
			return nil, fmt.Errorf("proxy %s: %w", proxy.Host, err)
		}
		return c, nil
	}
}

func httpConnect(ctx context.Context, c net.Conn, proxy *url.URL, hub string) error {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: hub}, Host: hub, Header: http.Header{}}
	if u := proxy.User; u != nil {
		pw, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+pw)))
	}
	if err := req.Write(c); err != nil {
		return err
	}
	// One byte at a time: what follows the answer belongs to TLS.
	resp, err := http.ReadResponse(bufio.NewReaderSize(oneByte{c}, 16), req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("CONNECT %s: %s", hub, resp.Status)
	}
	return nil
}

type oneByte struct{ net.Conn }

func (c oneByte) Read(b []byte) (int, error) { return c.Conn.Read(b[:min(1, len(b))]) }
