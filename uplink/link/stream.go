package link

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
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
func sendMessages(st controlStream, buf []byte, msgs []wire.Message) ([]byte, error) {
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

	hubs []string // where to go instead
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
		return remoteError(wire.Code(app.ErrorCode), app.ErrorMessage)
	}
	return err
}

// remoteError reads the text of a close, see closeText.
func remoteError(code wire.Code, message string) *RemoteError {
	re := &RemoteError{Code: code, Message: message}
	if text, tail, ok := strings.Cut(re.Message, retryMark); ok {
		if ms, err := strconv.ParseUint(strings.TrimSuffix(tail, " ms]"), 10, 32); err == nil {
			re.Message, re.RetryAfter = text, time.Duration(ms)*time.Millisecond
		}
	}
	return re
}

// closeText is what a close says to people, and, behind retryMark, when to come back: a
// connection that closes does not wait until a message is delivered.
func closeText(err error) string {
	if err == nil {
		return ""
	}
	text, after := clip(err.Error()), time.Duration(0)
	var re *RefuseError
	var le *localClose
	switch {
	case errors.As(err, &re):
		text, after = clip(re.Message), re.RetryAfter
	case errors.As(err, &le):
		text = clip(le.message)
	}
	if after > 0 {
		text += retryMark + strconv.FormatInt(after.Milliseconds(), 10) + " ms]"
	}
	return text
}

const retryMark = " [retry after "

// codeOf is the code to close with after err.
func codeOf(err error) wire.Code {
	var re *RefuseError
	var le *localClose
	switch {
	case err == nil:
		return wire.CodeOK
	case errors.As(err, &le):
		return le.code
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
