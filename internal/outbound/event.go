package outbound

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/message"
)

// Attempt is what goes with a message that is handed out.
type Attempt struct {
	N        int       // counts from 1
	Deadline time.Time // when nobody waits for the answer any more; zero for never
}

const (
	eventType = "application/cloudevents+json"
	batchType = "application/cloudevents-batch+json"
)

// EventsMax is how many events may follow from one message.
const EventsMax = 1000

// Binary is the message in the binary mode of CloudEvents' HTTP binding: its data as the body, all else in headers.
// The id is also the Idempotency-Key: it is the same for each attempt.
func Binary(m *message.Message, a Attempt) Request {
	h := http.Header{}
	for _, x := range attributes(m, a) {
		h["Ce-"+strings.ToUpper(x.name[:1])+x.name[1:]] = []string{percent(x.value)}
	}
	if m.ContentType != "" && !strings.ContainsFunc(m.ContentType, func(r rune) bool { return r < ' ' || r > '~' }) {
		h.Set("Content-Type", m.ContentType)
	}
	trailer(h, m)
	return Request{h, m.Data}
}

// Structured is the message as one JSON document.
func Structured(m *message.Message, a Attempt) Request {
	doc := map[string]any{}
	for _, x := range attributes(m, a) {
		doc[x.name] = x.value
	}
	if n := doc["naruattempt"]; n != nil {
		doc["naruattempt"] = a.N
	}
	if m.ContentType != "" {
		doc["datacontenttype"] = m.ContentType
	}
	switch {
	case len(m.Data) == 0:
	case (m.ContentType == "" || isJSON(m.ContentType)) && json.Valid(m.Data):
		doc["data"] = json.RawMessage(m.Data)
	case utf8.Valid(m.Data) && m.ContentType != "" && !isJSON(m.ContentType):
		doc["data"] = string(m.Data)
	default:
		doc["data_base64"] = base64.StdEncoding.EncodeToString(m.Data)
	}
	body, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("an event cannot be written: %v", err)) // strings, numbers and JSON that was checked
	}
	h := http.Header{"Content-Type": {eventType + "; charset=utf-8"}}
	trailer(h, m)
	return Request{h, body}
}

// trailer sets what is the same in both modes.
func trailer(h http.Header, m *message.Message) {
	h.Set("Idempotency-Key", m.ID.String())
	if !m.Trace.ID.IsZero() {
		h.Set("Traceparent", m.Trace.Traceparent())
	}
}

type attribute struct{ name, value string }

// attributes are those of CloudEvents 1.0, and naru's extensions.
func attributes(m *message.Message, a Attempt) []attribute {
	kind := m.Type
	if kind == "" {
		kind = "naru.message" // an event must have one
	}
	source := m.Source
	if source == "" {
		source = "//naru"
	}
	list := []attribute{{"specversion", "1.0"}, {"id", m.ID.String()}, {"source", source}, {"type", kind}, {"subject", string(m.Subject)},
		{"time", m.Happened().UTC().Format(time.RFC3339Nano)}, {"naruattempt", strconv.Itoa(max(a.N, 1))}}
	for _, x := range []attribute{{"dataschema", m.Schema}, {"narudevice", m.Device}} {
		if x.value != "" {
			list = append(list, x)
		}
	}
	if !m.Trace.ID.IsZero() {
		list = append(list, attribute{"traceparent", m.Trace.Traceparent()})
	}
	if !m.Cause.IsZero() {
		list = append(list, attribute{"narucause", m.Cause.String()})
	}
	if !a.Deadline.IsZero() {
		list = append(list, attribute{"narudeadline", a.Deadline.UTC().Format(time.RFC3339Nano)})
	}
	return list
}

func isJSON(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && (t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json"))
}

// percent writes a header's value as the HTTP binding wants it (§3.1.3.2): what is not printable ASCII, and space,
// double quote and percent, in per cent.
func percent(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '%' }) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// unpercent reads such a value; what is no escape stays as it is.
func unpercent(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Events reads what follows from an answer: nothing, an event in binary or structured mode, or a batch of them. What
// is something else is a *message.Rejection of reason not_decodable: nothing is left out without a word.
func (a *Answer) Events() ([]*message.Message, error) {
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	switch {
	case a.Header.Get("Ce-Specversion") != "":
		m, err := a.binary()
		if err != nil {
			return nil, a.garbled(err)
		}
		return []*message.Message{m}, nil
	case kind == eventType:
		m, err := event(a.Body)
		if err != nil {
			return nil, a.garbled(err)
		}
		return []*message.Message{m}, nil
	case kind == batchType:
		var docs []json.RawMessage
		if err := json.Unmarshal(a.Body, &docs); err != nil {
			return nil, a.garbled(fmt.Errorf("want a list of events: %w", err))
		}
		if len(docs) > EventsMax {
			return nil, a.garbled(fmt.Errorf("%d events; up to %d may follow from one message", len(docs), EventsMax))
		}
		var list []*message.Message
		for i, d := range docs {
			m, err := event(d)
			if err != nil {
				return nil, a.garbled(fmt.Errorf("event %d: %w", i, err))
			}
			list = append(list, m)
		}
		return list, nil
	case len(bytes.TrimSpace(a.Body)) == 0:
		return nil, nil
	}
	return nil, a.garbled(fmt.Errorf("it is no CloudEvent (content type %q): want none, as with 204, or %s, %s, or headers ce-…", excerpt([]byte(kind), a.hidden), eventType, batchType))
}

// Event says whether the answer calls itself one CloudEvent or more, whether it can be read as such or not.
func (a *Answer) Event() bool {
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	return a.Header.Get("Ce-Specversion") != "" || kind == eventType || kind == batchType
}

func (a *Answer) garbled(err error) error {
	return message.Rejectf(message.NotDecodable, "the answer of status %d and %d bytes cannot be read: %w; it begins %q", a.Status, len(a.Body), err, excerpt(a.Body, a.hidden))
}

func (a *Answer) binary() (*message.Message, error) {
	values := map[string]string{}
	for name, v := range a.Header {
		if n, ok := strings.CutPrefix(name, "Ce-"); ok && len(v) > 0 {
			values[strings.ToLower(n)] = unpercent(v[0])
		}
	}
	m, err := fromAttributes(values)
	if err == nil {
		m.ContentType, m.Data = a.Header.Get("Content-Type"), a.Body
	}
	return m, err
}

// event reads one in JSON.
func event(raw []byte) (*message.Message, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for name, v := range doc {
		if name == "data" || name == "data_base64" || string(v) == "null" {
			continue
		}
		var s string
		if json.Unmarshal(v, &s) != nil {
			s = string(v) // a number, or true
		}
		values[name] = s
	}
	m, err := fromAttributes(values)
	if err != nil {
		return nil, err
	}
	m.ContentType = values["datacontenttype"]
	data, plain := doc["data"]
	coded, binary := doc["data_base64"]
	switch {
	case plain && binary:
		return nil, errors.New("it has data and data_base64")
	case binary:
		var s string
		if err := json.Unmarshal(coded, &s); err != nil {
			return nil, fmt.Errorf("data_base64: %w", err)
		}
		if m.Data, err = base64.StdEncoding.DecodeString(s); err != nil {
			return nil, fmt.Errorf("data_base64: %w", err)
		}
	case plain:
		m.Data = data
		var s string
		if m.ContentType != "" && !isJSON(m.ContentType) && json.Unmarshal(data, &s) == nil {
			m.Data = []byte(s)
		} else if m.ContentType == "" {
			m.ContentType = "application/json"
		}
	}
	return m, nil
}

// fromAttributes takes what naru heeds of an event that is to be said: where it goes, and what it is of. Its id, source
// and trace are given to it here.
func fromAttributes(v map[string]string) (*message.Message, error) {
	if v["specversion"] != "1.0" {
		return nil, fmt.Errorf("specversion %q; want 1.0", v["specversion"])
	}
	m := &message.Message{Subject: message.Subject(v["subject"]), Type: v["type"], Device: v["narudevice"], Schema: v["dataschema"]}
	if m.Subject == "" {
		return nil, errors.New("subject is wanted: where the message goes, such as device.d-1.command.blink.c1")
	}
	if err := m.Subject.Valid(); err != nil {
		return nil, err
	}
	for name, to := range map[string]*time.Time{"time": &m.Time, "naruexpires": &m.Expires} {
		if s := v[name]; s != "" {
			at, err := time.Parse(time.RFC3339Nano, s)
			if err != nil {
				return nil, fmt.Errorf("%s %q: want a time such as 2026-11-23T03:00:00Z", name, s)
			}
			*to = at
		}
	}
	return m, nil
}
