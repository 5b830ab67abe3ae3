package storehttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"tailrace/storage"
)

// Error is an answer other than 2xx. Code is stable and meant for programs,
// Message says what is wrong with which value, Hint what to do about it.
type Error struct {
	Status        int    `json:"-"`
	Code          string `json:"code"`
	Message       string `json:"message"`
	Hint          string `json:"hint,omitempty"`
	Line          int    `json:"line,omitempty"`           // of an NDJSON body, from 1
	Start         *int64 `json:"start,omitempty"`          // of the partition, with offset_out_of_range
	HighWatermark *int64 `json:"high_watermark,omitempty"` // of the partition, with offset_out_of_range
}

func (e *Error) Error() string { return e.Message }

// WriteError answers with e as JSON.
func WriteError(w http.ResponseWriter, e *Error) {
	writeJSON(w, e.Status, map[string]*Error{"error": e})
}

// writeJSON answers with v on one line.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // only for a type of ours that JSON cannot carry
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	b = append(b, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b)
}

func unknownTopic(name string) *Error {
	return &Error{Status: http.StatusNotFound, Code: "unknown_topic",
		Message: fmt.Sprintf("there is no topic %q", name), Hint: "GET /api/v1/topics lists the topics"}
}

func badRequest(code, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: code, Message: fmt.Sprintf(format, args...)}
}

// storeError translates an error of the store at the one place where a caller
// must tell a refusal from a failure whose outcome is unknown.
func storeError(err error) *Error {
	var e *Error
	var disk *storage.DiskError
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, storage.ErrFull):
		return &Error{Status: http.StatusInsufficientStorage, Code: "storage_full",
			Message: "nothing was stored: " + err.Error(), Hint: "free space or raise the disk budget of the topic's class"}
	case errors.Is(err, storage.ErrClosed):
		return &Error{Status: http.StatusServiceUnavailable, Code: "shutting_down", Message: "nothing was stored: the daemon is stopping"}
	case errors.As(err, &disk):
		return &Error{Status: http.StatusServiceUnavailable, Code: "disk_error",
			Message: "not acknowledged: " + err.Error(), Hint: "see the daemon's log; the records may or may not be there after recovery"}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return &Error{Status: http.StatusServiceUnavailable, Code: "outcome_unknown",
			Message: "the request ended before the disk answered", Hint: "look whether the records are there before sending them again"}
	default:
		return &Error{Status: http.StatusInternalServerError, Code: "internal", Message: err.Error()}
	}
}
