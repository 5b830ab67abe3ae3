package devices

import (
	"fmt"
	"strings"
)

// template is text with {name} places: names of the rule's pattern, or topic,
// client, user of the message. "{{" and "}}" are braces.
type template struct {
	text  string
	parts []part
}

type part struct {
	literal string
	source  int // index of a capture, or one of the negative sources below
}

const (
	fromLiteral = -1 - iota
	fromTopic
	fromClient
	fromUser
)

func parseTemplate(text string, names []string) (template, error) {
	t := template{text: text}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			t.parts = append(t.parts, part{literal: lit.String(), source: fromLiteral})
			lit.Reset()
		}
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case (c == '{' || c == '}') && i+1 < len(text) && text[i+1] == c:
			lit.WriteByte(c)
			i++
		case c == '}':
			return t, fmt.Errorf("template %q: \"}\" without \"{\"", text)
		case c == '{':
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return t, fmt.Errorf("template %q: \"{\" is not closed", text)
			}
			name := text[i+1 : i+end]
			src, err := source(name, names)
			if err != nil {
				return t, fmt.Errorf("template %q: %w", text, err)
			}
			flush()
			t.parts = append(t.parts, part{source: src})
			i += end
		default:
			lit.WriteByte(c)
		}
	}
	flush()
	return t, nil
}

func source(name string, names []string) (int, error) {
	switch name {
	case "topic":
		return fromTopic, nil
	case "client":
		return fromClient, nil
	case "user":
		return fromUser, nil
	}
	for i, n := range names {
		if n == name {
			return i, nil
		}
	}
	known := append([]string{"topic", "client", "user"}, names...)
	return 0, fmt.Errorf("{%s} is not a name of the topic pattern; known: %s", name, strings.Join(known, ", "))
}

func (t *template) expand(m *Message, c *captures) string {
	if len(t.parts) == 1 && t.parts[0].source == fromLiteral {
		return t.parts[0].literal
	}
	var b strings.Builder
	for _, p := range t.parts {
		switch p.source {
		case fromLiteral:
			b.WriteString(p.literal)
		case fromTopic:
			b.WriteString(m.Topic)
		case fromClient:
			b.WriteString(m.Client)
		case fromUser:
			b.WriteString(m.User)
		default:
			b.WriteString(c[p.source])
		}
	}
	return b.String()
}

// literal reports whether the template has no places to fill.
func (t *template) literal() (string, bool) {
	switch {
	case len(t.parts) == 0:
		return "", true
	case len(t.parts) == 1 && t.parts[0].source == fromLiteral:
		return t.parts[0].literal, true
	}
	return "", false
}

// maxStreamName is the limit Kafka puts on topic names.
const maxStreamName = 249

// streamName makes an expanded template a legal topic name: bytes that Kafka does
// not allow become "_", since a device's odd spelling is no reason to refuse its
// readings (its own MQTT topic stays in the record's headers). What cannot be a
// name at all is refused.
func streamName(s string) (string, error) {
	if err := CheckStreamName(s); err == nil {
		return s, nil
	}
	b := []byte(s)
	for i, c := range b {
		if !legal(c) {
			b[i] = '_'
		}
	}
	return string(b), CheckStreamName(string(b))
}

// CheckStreamName reports why s is no name of a stream: empty, longer than 249
// bytes, ".", "..", beginning with "__" (kept for the system's own topics), or
// with other characters than letters, digits, ".", "_", "-".
func CheckStreamName(s string) error {
	switch {
	case s == "" || len(s) > maxStreamName:
		return fmt.Errorf("stream name %.60q: want 1 to %d characters", s, maxStreamName)
	case s == "." || s == "..":
		return fmt.Errorf("stream name %q is not allowed", s)
	case strings.HasPrefix(s, "__"):
		return fmt.Errorf("stream name %q: names beginning with \"__\" are kept for the system", s)
	}
	for i := range len(s) {
		if !legal(s[i]) {
			return fmt.Errorf("stream name %q: character %q; want letters, digits, \".\", \"_\" and \"-\"", s, s[i])
		}
	}
	return nil
}

func legal(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}
