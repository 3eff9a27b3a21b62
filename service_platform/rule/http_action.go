package rule

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// HTTP sends the output to a destination, an HTTP server elsewhere, as a CloudEvent. Destinations are registered by
// themselves (`naru destination add`), with their URLs, limits and secrets; so no rule holds any.
type HTTP struct {
	Destination string `json:"destination"`
	// Path goes below the destination's URL.
	Path        string       `json:"path,omitempty"`
	Headers     []HTTPHeader `json:"headers,omitempty"`
	ContentType string       `json:"content_type,omitempty"` // application/json where it is missing
	TTL         string       `json:"ttl,omitempty"`          // for how long it is tried; 24h where it is missing
}

// HTTPHeader is one of a request; its value is a template, its name is not.
type HTTPHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

const (
	httpTTL     = 24 * time.Hour
	pathMax     = 1024
	originalMax = 47 << 10 // bytes of a message that go along for the error action: in Base64 they are a property of MQTT
)

func (c *action) http(a *HTTP) error {
	if !destinationName(a.Destination) {
		return fmt.Errorf("destination %q: want the name of one, of small letters, digits, - and _; `naru destination list` shows them", a.Destination)
	}
	ttl := httpTTL
	if a.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(a.TTL); err != nil || ttl <= 0 {
			return fmt.Errorf("ttl %q: want a duration such as 10m", a.TTL)
		}
	}
	contentType := a.ContentType
	if contentType == "" {
		contentType = "application/json"
	}
	if err := errors.Join(c.template("path", a.Path, false), c.template("content_type", contentType, true)); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i, h := range a.Headers {
		name := strings.ToLower(h.Name)
		if !headerName(name) || seen[name] {
			return fmt.Errorf("headers[%d].name %q: want a header's name, each once, and none of those that naru sets", i, h.Name)
		}
		seen[name] = true
		if err := c.template(fmt.Sprintf("headers[%d].value", i), h.Value, false); err != nil {
			return err
		}
	}
	subject := serviceplatform.SendSubject(a.Destination)
	c.to = []message.Pattern{message.Pattern(subject)}
	label, index := c.rule.Label(), strconv.Itoa(c.index)
	if c.index == errorAction {
		index = "error"
	}
	c.build = func(v []string, m *message.Message, now time.Time) error {
		if err := safePath(v[0]); err != nil {
			return fmt.Errorf("path %q: %w", v[0], err)
		}
		m.Subject, m.QoS, m.ContentType, m.Expires = subject, 1, v[1], now.Add(ttl)
		m.Properties = m.Properties.Add(serviceplatform.SendRule, label).Add(serviceplatform.SendAction, index)
		if v[0] != "" {
			m.Properties = m.Properties.Add(serviceplatform.SendPath, v[0])
		}
		for i, h := range a.Headers {
			if strings.ContainsFunc(v[2+i], func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return fmt.Errorf("headers[%d].value %q has control characters", i, v[2+i])
			}
			m.Properties = m.Properties.Add(serviceplatform.SendHeader+strings.ToLower(h.Name), v[2+i])
		}
		return nil
	}
	c.tell = func(in *sql.Input, m *message.Message) {
		m.Properties = m.Properties.Add(serviceplatform.SendTopic, in.Topic)
		if in.ClientID != "" {
			m.Properties = m.Properties.Add(serviceplatform.SendClient, in.ClientID)
		}
		if c.rule.onError != nil && c.index != errorAction && len(in.Payload) <= originalMax {
			m.Properties = m.Properties.Add(serviceplatform.SendPayload, base64.StdEncoding.EncodeToString(in.Payload))
		}
	}
	return nil
}

func destinationName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

func headerName(s string) bool {
	if s == "" || len(s) > 64 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" || strings.HasPrefix(s, "ce-") {
		return false
	}
	switch s {
	case "authorization", "proxy-authorization", "cookie": // are the destination's
		return false
	case "idempotency-key", "traceparent", "tracestate", "content-length", "content-type", "transfer-encoding", "host", "connection", "upgrade", "te", "trailer":
		return false
	}
	return true
}

// safePath keeps what a message says from leading elsewhere than below the destination's URL.
func safePath(p string) error {
	if len(p) > pathMax {
		return fmt.Errorf("it has %d bytes; it may have %d", len(p), pathMax)
	}
	if strings.ContainsAny(p, "?#\\%") || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return errors.New("want one without spaces, and without ? # % \\ in it")
	}
	for _, level := range strings.Split(strings.TrimPrefix(p, "/"), "/") {
		if level == "." || level == ".." || level == "" && p != "" && p != "/" {
			return errors.New("want levels between /, none of them empty and none of dots alone")
		}
	}
	return nil
}
