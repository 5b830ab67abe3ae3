package mqtt

import "time"

// pace slows a client down to its rate: it is not read for a while, and TCP makes it
// wait. Nothing is lost and nothing refused. Owned by the connection's goroutine, but
// for what a publish adds under conn.in.
type pace struct {
	msgs, bytes int // since the last look
	debt        time.Duration
	at          time.Time
}

// maxPause is how long a connection is not read at a time: PINGREQs behind it wait, too.
const maxPause = 5 * time.Second

// pause returns how long to wait now. A second's worth is free as a burst.
func (p *pace) pause(l *Limits, now time.Time) time.Duration {
	if p.msgs == 0 {
		return 0
	}
	if d := now.Sub(p.at); d > 0 {
		p.debt = max(-time.Second, p.debt-min(d, time.Hour))
	}
	p.at = now
	var cost time.Duration
	if l.PublishRate > 0 {
		cost = time.Second * time.Duration(p.msgs) / time.Duration(l.PublishRate)
	}
	if l.PublishBytes > 0 {
		cost = max(cost, time.Second*time.Duration(p.bytes)/time.Duration(l.PublishBytes))
	}
	p.msgs, p.bytes = 0, 0
	p.debt += cost
	return min(max(p.debt, 0), maxPause)
}

// slowDown waits when the client is above its rate; false when the connection ends meanwhile.
func (c *conn) slowDown() bool {
	if l := &c.srv.cfg.Limits; l.PublishRate <= 0 && l.PublishBytes <= 0 {
		return true // and no look at the clock
	}
	d := c.pace.pause(&c.srv.cfg.Limits, time.Now())
	if d <= 0 {
		return true
	}
	c.srv.stats.Throttled.Add(1)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.quitting():
		return false
	}
}
