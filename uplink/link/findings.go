package link

import (
	"fmt"
	"strings"
	"time"
)

// plenty is a rate above which the processors are compared, not the link.
const plenty = 100e6

// findings says in words what was measured, problems first.
func (d *Diagnosis) findings(now time.Time) []Finding {
	var problems, remarks []Finding
	problem := func(do, what string, args ...any) {
		problems = append(problems, Finding{Problem: true, What: fmt.Sprintf(what, args...), Do: do})
	}
	remark := func(do, what string, args ...any) {
		remarks = append(remarks, Finding{What: fmt.Sprintf(what, args...), Do: do})
	}
	quicUp, tcpUp := d.QUIC != nil && d.QUIC.Error == "", d.TCP != nil && d.TCP.Error == ""
	switch {
	case d.Probes.Error != "":
		problem("check the name and port under uplink.hubs, and this machine's DNS", "%s cannot be reached: %s", d.Hub, d.Probes.Error)
	case quicUp:
	case d.Probes.Answered > 0:
		problem("look at the reason: a certificate, a clock, another hub behind this address", "UDP packets reach the hub and come back, a QUIC connection fails: %s", d.QUIC.Error)
	case tcpUp:
		problem("nothing now; where the site's network may be changed, let UDP pass to the hub's port: it copes better with loss",
			"UDP does not come through to %s; TCP does, and the node uses it by itself", d.Hub)
	case d.TCP != nil && strings.Contains(d.TCP.Error, "refused"):
		problem("see whether the hub runs there (systemctl status tailrace-hub)", "the machine of the hub answers, but nothing listens at %s, and nothing comes back by UDP", d.TCPHub)
	case d.TCP != nil:
		problem("check that the hub runs, its address, and this machine's network; a site that lets nothing out but web traffic may need uplink.proxy",
			"neither UDP nor TCP comes through: TCP says %s", d.TCP.Error)
	default:
		problem("check that the hub runs and its address; where only TCP is let out, set listen_tcp at the hub and uplink.fallback at the node", "UDP does not come through to %s", d.Hub)
	}
	if d.TCP != nil && !tcpUp && quicUp {
		remark("needed only where UDP is blocked; check listen_tcp at the hub", "TCP to %s does not work: %s", d.TCPHub, d.TCP.Error)
	}
	if p := d.Probes; p.Answered > 0 && p.Answered < p.Sent {
		loss := 100 * float64(p.Sent-p.Answered) / float64(p.Sent)
		say := remark
		if loss >= 10 {
			say = problem
		}
		say("the node opens more connections by itself while there is a backlog; look at antenna or cable", "%.0f %% of small packets or their answers are lost (%d of %d came back)", loss, p.Answered, p.Sent)
	}
	if p := d.Probes; p.Answered > 0 && p.MaxPacket == 0 {
		problem("a tunnel with a small MTU lies between; raise it to 1280 or more, or use TCP", "no UDP packet of 1200 bytes came back: QUIC cannot work")
	} else if p.MaxPacket > 0 && p.MaxPacket < probeSizes[len(probeSizes)-1] {
		remark("nothing: packets stay at 1200 bytes", "the largest UDP payload that passes is %d bytes or a little more: a tunnel or PPPoE lies between", p.MaxPacket)
	}
	if quicUp && tcpUp && d.TCP.BitsPerSecond > 2*d.QUIC.BitsPerSecond && d.QUIC.BitsPerSecond > 0 && d.QUIC.BitsPerSecond < plenty {
		if p := d.Probes; 20*(p.Sent-p.Answered) < p.Sent { // single packets come through
			problem("nothing: the node measures it while a backlog waits and stays with TCP. Where it can be changed, take UDP to the hub out of the limit",
				"UDP seems to be throttled: QUIC carries %s, TCP %s", bitRate(d.QUIC.BitsPerSecond), bitRate(d.TCP.BitsPerSecond))
		} else {
			remark("nothing: the node measures it while a backlog waits", "with this loss TCP carries more: %s, QUIC %s over %d connections", bitRate(d.TCP.BitsPerSecond), bitRate(d.QUIC.BitsPerSecond), diagStreams)
		}
	}
	if quicUp && d.QUIC.Loss >= 3 {
		remark("more connections are opened while there is a backlog; throughput is that of the link", "%.1f %% of QUIC packets are lost under load", d.QUIC.Loss)
	}
	used := d.QUIC
	if !quicUp {
		used = d.TCP
	}
	if used != nil && used.Queue > 400 {
		remark("the node paces its backlog, so that live records do not wait; other traffic of the site may", "under load a round trip takes %.0f ms longer: the link has a deep queue", used.Queue)
	}
	for _, i := range d.Idle {
		if !i.Alive {
			remark("nothing: the node speaks every 15 s, and after a silence dials anew", "after %.0f s of silence the hub no longer reaches this node: a firewall or NAT forgets UDP flows that soon", i.Seconds)
		}
	}
	if quicUp || tcpUp {
		if off := d.ClockOffset; off > 2 || off < -2 {
			say := remark
			if off > 60 || off < -60 {
				say = problem
			}
			say("set the clock (chrony, systemd-timesyncd): event times come from it; order and delivery do not", "this machine's clock differs from the hub's by %.0f s", -off)
		}
	}
	if left := d.CertEnd.Sub(now); !d.CertEnd.IsZero() && left < 30*24*time.Hour {
		problem("renew it", "this node's certificate ends on %s", d.CertEnd.Format(time.DateOnly))
	}
	return append(problems, remarks...)
}

func bitRate(b float64) string {
	switch {
	case b >= 1e6:
		return fmt.Sprintf("%.1f Mbit/s", b/1e6)
	case b >= 1e3:
		return fmt.Sprintf("%.0f kbit/s", b/1e3)
	}
	return fmt.Sprintf("%.0f bit/s", b)
}
