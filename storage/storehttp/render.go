package storehttp

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"tailrace/storage"
	"tailrace/storage/record"
)

// A record in answers, one line of NDJSON:
//
//	{"topic":"turbines","partition":0,"offset":12,"timestamp":1732442400000,
//	 "time":"2024-11-24T10:00:00.000Z","key":"wtg-07","key_encoding":"text",
//	 "value":{"rpm":12.4},"value_encoding":"json",
//	 "headers":[{"key":"mqtt.topic","value":"wind/wtg-07","value_encoding":"text"}],
//	 "origin":{"node":"site-1","epoch":"0f3c…","offset":812}}
//
// Encodings: "json" (value is that JSON), "text" (a string of UTF-8), "base64"
// (a string of base64), "null" (there is none). POST reads the same shape.
const (
	encJSON   = "json"
	encText   = "text"
	encBase64 = "base64"
	encNull   = "null"
)

// originHeader is the record header in which a node writes a record's position.
const originHeader = storage.OriginHeader

// Position is where a record was first stored.
type Position struct {
	Node      string
	Epoch     [16]byte
	EpochSize int // bytes of Epoch that are known: a node's header carries the first 8
	Offset    int64
}

// appendRecord appends one record as JSON, without a newline.
func appendRecord(dst []byte, topic string, partition int, r *record.Record, pos *Position) []byte {
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, topic)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(partition), 10)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, r.Offset, 10)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, r.Timestamp, 10)
	dst = append(dst, `,"time":"`...)
	dst = append(dst, FormatTime(r.Timestamp)...)
	dst = append(dst, `","key":`...)
	dst, enc := appendText(dst, r.Key)
	dst = append(dst, `,"key_encoding":"`...)
	dst = append(dst, enc...)
	dst = append(dst, `","value":`...)
	dst, enc = appendValue(dst, r.Value)
	dst = append(dst, `,"value_encoding":"`...)
	dst = append(dst, enc...)
	dst = append(dst, '"')
	first := true
	for i := range r.Headers {
		h := &r.Headers[i]
		if h.Key == originHeader {
			continue
		}
		if first {
			dst = append(dst, `,"headers":[{"key":`...)
			first = false
		} else {
			dst = append(dst, `,{"key":`...)
		}
		dst = appendString(dst, h.Key)
		dst = append(dst, `,"value":`...)
		dst, enc = appendText(dst, h.Value)
		dst = append(dst, `,"value_encoding":"`...)
		dst = append(dst, enc...)
		dst = append(dst, `"}`...)
	}
	if !first {
		dst = append(dst, ']')
	}
	if pos != nil {
		dst = append(dst, `,"origin":{"node":`...)
		dst = appendString(dst, pos.Node)
		dst = append(dst, `,"epoch":"`...)
		dst = hex.AppendEncode(dst, pos.Epoch[:pos.EpochSize])
		dst = append(dst, `","offset":`...)
		dst = strconv.AppendInt(dst, pos.Offset, 10)
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// appendValue appends b as JSON if it is JSON, else as text or base64.
func appendValue(dst, b []byte) ([]byte, string) {
	if len(b) > 0 && json.Valid(b) {
		n := len(dst)
		buf := bytes.NewBuffer(dst)
		if json.Compact(buf, b) == nil { // a line of NDJSON holds no newline
			return buf.Bytes(), encJSON
		}
		dst = buf.Bytes()[:n]
	}
	return appendText(dst, b)
}

// appendText appends b as a JSON string of UTF-8 or of base64, nil as null.
func appendText(dst, b []byte) ([]byte, string) {
	switch {
	case b == nil:
		return append(dst, "null"...), encNull
	case utf8.Valid(b):
		return appendString(dst, string(b)), encText
	default:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, b)
		return append(dst, '"'), encBase64
	}
}

// appendString appends s as a JSON string. s from a record may hold anything;
// bytes that are not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' {
				i++
				continue
			}
			dst = append(dst, s[from:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				const digits = "0123456789abcdef"
				dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
			}
			i++
			from = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r == '\u2028' || r == '\u2029' {
			dst = append(dst, s[from:i]...)
			if r == utf8.RuneError {
				dst = append(dst, `\ufffd`...)
			} else {
				dst = append(dst, `\u202`...)
				dst = append(dst, byte('8'+r-'\u2028'))
			}
			from = i + n
		}
		i += n
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// csvHeader names the columns of format=csv.
const csvHeader = "topic,partition,offset,timestamp,time,key,key_encoding,value,value_encoding,node,epoch,origin_offset\n"

// appendCSV appends one record as a row (RFC 4180, line ends as "\n").
func appendCSV(dst []byte, topic string, partition int, r *record.Record, pos *Position) []byte {
	dst = appendCell(dst, topic)
	dst = append(dst, ',')
	dst = strconv.AppendInt(dst, int64(partition), 10)
	dst = append(dst, ',')
	dst = strconv.AppendInt(dst, r.Offset, 10)
	dst = append(dst, ',')
	dst = strconv.AppendInt(dst, r.Timestamp, 10)
	dst = append(dst, ',')
	dst = append(dst, FormatTime(r.Timestamp)...)
	dst = append(dst, ',')
	dst = appendBytesCells(dst, r.Key)
	dst = append(dst, ',')
	dst = appendBytesCells(dst, r.Value)
	if pos == nil {
		return append(dst, ",,,\n"...)
	}
	dst = append(dst, ',')
	dst = appendCell(dst, pos.Node)
	dst = append(dst, ',')
	dst = hex.AppendEncode(dst, pos.Epoch[:pos.EpochSize])
	dst = append(dst, ',')
	dst = strconv.AppendInt(dst, pos.Offset, 10)
	return append(dst, '\n')
}

// appendBytesCells appends two cells, the bytes and their encoding.
func appendBytesCells(dst, b []byte) []byte {
	switch {
	case b == nil:
		return append(dst, ","+encNull...)
	case utf8.Valid(b):
		dst = appendCell(dst, string(b))
		return append(dst, ","+encText...)
	default:
		dst = base64.StdEncoding.AppendEncode(dst, b)
		return append(dst, ","+encBase64...)
	}
}

func appendCell(dst []byte, s string) []byte {
	quote := false
	for i := 0; i < len(s); i++ {
		if c := s[i]; c == ',' || c == '"' || c == '\n' || c == '\r' {
			quote = true
			break
		}
	}
	if !quote {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}
