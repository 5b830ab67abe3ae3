package link

import (
	"errors"
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"tailrace/uplink/wire"
)

// Urgencies of QUIC streams, 0 first: control is never behind data.
const (
	urgencyControl = 0
	urgencyLive    = 1
	urgencyBack    = 4
	urgencyBulk    = 6
)

func urgency(l wire.Lane) int8 {
	switch l {
	case wire.LaneLive:
		return urgencyLive
	case wire.LaneBackfill:
		return urgencyBack
	}
	return urgencyBulk
}

const controlWriteTimeout = 30 * time.Second

// sendMessages writes control messages with a deadline.
func sendMessages(st *quic.Stream, buf []byte, msgs []wire.Message) ([]byte, error) {
	buf = buf[:0]
	var err error
	for _, m := range msgs {
		if buf, err = wire.Append(buf, m); err != nil {
			return buf, err
		}
	}
	st.SetWriteDeadline(time.Now().Add(controlWriteTimeout))
	_, err = st.Write(buf)
	return buf, err
}

// RemoteError is the reason with which the other end closed, or refused.
type RemoteError struct {
	Code       wire.Code
	Message    string
	RetryAfter time.Duration
}

func (e *RemoteError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the other end closed with code %d", e.Code)
	}
	return fmt.Sprintf("the other end closed with code %d: %s", e.Code, e.Message)
}

// closeReason turns quic-go's error into ours where the other end gave a reason.
func closeReason(err error) error {
	var app *quic.ApplicationError
	if errors.As(err, &app) && app.Remote {
		return &RemoteError{Code: wire.Code(app.ErrorCode), Message: app.ErrorMessage}
	}
	return err
}

// codeOf is the code to close with after err.
func codeOf(err error) wire.Code {
	var re *RefuseError
	switch {
	case err == nil:
		return wire.CodeOK
	case errors.As(err, &re):
		return re.Code
	case errors.Is(err, wire.ErrMalformed):
		return wire.CodeProtocol
	}
	return wire.CodeInternal
}

// clip keeps what QUIC's close frame can carry.
func clip(s string) string {
	if len(s) > 400 {
		return s[:400]
	}
	return s
}
