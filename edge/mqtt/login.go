package mqtt

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"time"

	"tailrace/edge/mqtt/packet"
)

// login reads CONNECT, asks the backend, takes the session and answers. The read
// deadline of the login timeout is set. Its error ends the connection; what the
// client is told has been written then.
func (c *conn) login(crt *x509.Certificate) error {
	l := &c.srv.cfg.Limits
	var cp packet.Connect
	for {
		if c.rd != nil {
			b := c.rd.b
			if packet.Type(b[0]>>4) != packet.CONNECT { // 3.1.0-1
				return &packet.Error{Code: packet.ProtocolError, What: "first packet is not CONNECT"}
			}
			head, start, end, _, err := packet.Frame(b, l.LoginBytes)
			if err != nil {
				return err
			}
			if end > 0 {
				c.rpos = end
				err = c.connect(head, b[start:end], &cp, crt)
				if c.rd != nil && c.rpos == len(c.rd.b) {
					c.releaseRead()
				}
				return err
			}
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// connect handles a whole CONNECT.
func (c *conn) connect(head byte, body []byte, cp *packet.Connect, crt *x509.Certificate) error {
	s := c.srv
	err := packet.ReadConnect(head, body, cp)
	c.Version = byte(cp.Version)
	if err == nil {
		err = c.accept(cp, crt)
	}
	if err != nil {
		var pe *packet.Error
		if errors.As(err, &pe) && (pe.Code != packet.UnsupportedVersion && cp.Version != packet.V5) {
			return err // 3.1.1, 3.1.4-1: closed without an answer
		}
		s.stats.LoginsRefused.Add(1)
		c.connack(&packet.Connack{Code: codeOf(err)})
		return err
	}
	ack := packet.Connack{HasKeepAlive: c.keepAlive != time.Duration(cp.KeepAlive)*time.Second}
	ack.KeepAlive = uint16(c.keepAlive / time.Second)
	if len(cp.ClientID) == 0 {
		ack.AssignedID = c.ID
	}
	if ack.SessionPresent, err = s.attach(c, cp); err != nil {
		s.stats.LoginsRefused.Add(1)
		c.connack(&packet.Connack{Code: codeOf(err)})
		return err
	}
	if err := c.mayStay(); err != nil {
		s.stats.LoginsRefused.Add(1)
		c.connack(&packet.Connack{Code: packet.NotAuthorized})
		return err
	}
	l := &s.cfg.Limits
	if e := c.ss.expiry.Load(); e != cp.Expiry {
		ack.HasExpiry, ack.Expiry = true, e
	}
	ack.ReceiveMax, ack.AliasMax, ack.MaxPacket = uint16(l.ReceiveMaximum), uint16(s.aliases()), uint32(l.MaxPacketBytes)
	// 3.1.2-24: nothing larger than the client takes, and without CONNACK there is no connection.
	if c.maxPacket > 0 && len(packet.AppendConnack(nil, packet.V5, &ack)) > c.maxPacket {
		return &packet.Error{Code: packet.PacketTooLarge, What: "client's maximum packet size is below a CONNACK"}
	}
	s.stats.Logins.Add(1)
	c.admitted.welcome()
	// Deliveries may begin behind the CONNACK, never before it.
	c.ss.mu.Lock()
	c.connack(&ack)
	c.ss.conn = c
	c.ss.resume()
	c.ss.mu.Unlock()
	if c.keepAlive == 0 {
		c.setReadDeadline(time.Time{})
	}
	return nil
}

// accept checks a well-formed CONNECT and asks the backend.
func (c *conn) accept(cp *packet.Connect, crt *x509.Certificate) error {
	s := c.srv
	l := &s.cfg.Limits
	if cp.HasAuth {
		return &ReasonError{packet.BadAuthMethod, "enhanced authentication is not supported"}
	}
	c.ID = string(cp.ClientID)
	if c.ID == "" {
		if !cp.Clean && cp.Version != packet.V5 || cp.Version == packet.V31 { // 3.1.1: 3.1.3-8
			return &ReasonError{packet.ClientIDNotValid, "empty client id"}
		}
		var r [10]byte
		rand.Read(r[:])
		c.ID = "auto-" + hex.EncodeToString(r[:])
		c.Assigned = true
	}
	if len(c.ID) > l.ClientIDBytes {
		return &ReasonError{packet.ClientIDNotValid, "client id too long"}
	}
	if cp.HasWill {
		if err := s.checkTopic(string(cp.Will.Topic)); err != nil {
			return err
		}
		if len(cp.Will.Topic)+len(cp.Will.Payload) > l.MaxRecordBytes {
			return &ReasonError{packet.PacketTooLarge, "will above the record limit"}
		}
	}
	c.Username = string(cp.Username)
	c.keepAlive = time.Duration(cp.KeepAlive) * time.Second // never in 16 bits: x 1.5 would overflow
	if m := l.MaxKeepAlive; m > 0 && cp.Version == packet.V5 && (c.keepAlive == 0 || c.keepAlive > m) {
		c.keepAlive = m / time.Second * time.Second
	}
	c.outMax = l.OutboundInFlight
	if cp.Version == packet.V5 {
		c.outMax = min(c.outMax, int(cp.ReceiveMax))
		c.maxPacket = int(cp.MaxPacket)
		c.aliasMax = min(int(cp.AliasMax), s.aliases())
		c.recvMax = int32(l.ReceiveMaximum)
	}
	var password []byte
	if cp.HasPassword {
		password = cp.Password
	}
	if err := s.cfg.Backend.Authenticate(&c.Client, c.Username, password, crt); err != nil {
		s.noteRefused("client", c.ID, "user", c.Username, "remote", c.Remote, "error", err)
		if asReason(err) == nil {
			err = &ReasonError{packet.NotAuthorized, err.Error()}
		}
		return err
	}
	if c.Identity == "" {
		c.Identity = c.Username
	}
	if cp.HasWill {
		if err := c.mayHaveWill(string(cp.Will.Topic)); err != nil {
			s.log.Info("login refused for its will", "client", c.ID, "topic", string(cp.Will.Topic), "error", err)
			if asReason(err) == nil {
				err = &ReasonError{packet.NotAuthorized, err.Error()}
			}
			return err
		}
	}
	return nil
}

func codeOf(err error) packet.Code {
	var pe *packet.Error
	if errors.As(err, &pe) {
		return pe.Code
	}
	if re := asReason(err); re != nil {
		return re.Code
	}
	return packet.Unspecified
}

func (c *conn) connack(a *packet.Connack) {
	v := packet.Version(c.Version)
	if v > packet.V5 { // a level of the future understands the newest we know
		v = packet.V5
	}
	if ch := c.out.begin(); ch != nil {
		ch.b = packet.AppendConnack(ch.b, v, a)
	}
	c.out.end()
}
