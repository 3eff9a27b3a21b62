package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
)

// Settings are what a destination is registered with.
type Settings struct {
	Description string `json:"description,omitempty"`
	// URL is where its messages go; a rule's path is below it.
	URL string `json:"url"`
	// Headers go with each request. What is secret in them is said by file or environment.
	Headers []Header `json:"headers,omitempty"`
	// Mode is binary, with the event's attributes in headers, or structured, with all of it in one JSON document.
	Mode string `json:"mode,omitempty"`
	// Timeout is for one call; 10s where it is missing.
	Timeout string `json:"timeout,omitempty"`
	// Calls is how many are made at once; 8 where it is missing.
	Calls int `json:"calls,omitempty"`
	// Attempts is after how many a message is dead; 12 where it is missing, with growing pauses about an hour.
	Attempts int `json:"attempts,omitempty"`
	// GiveUpAfter is for how long a message is tried that cannot be sent at all, which counts as no attempt; 1h where it is missing.
	GiveUpAfter string `json:"give_up_after,omitempty"`
}

// Header is a request's. Exactly one of Value, File and Env says what it has, behind Prefix.
type Header struct {
	Name   string `json:"name"`
	Prefix string `json:"prefix,omitempty"` // such as "Bearer "
	Value  string `json:"value,omitempty"`
	File   string `json:"file,omitempty"` // in the component's secrets_dir
	Env    string `json:"env,omitempty"`  // of the process's environment; its name begins with NARU_SECRET_
}

// Destination is an HTTP server elsewhere, as the table has it.
type Destination struct {
	Name string `json:"name"`
	Settings
	Paused bool `json:"paused,omitempty"` // its messages wait
	// Since is when it was registered: what was said before is not its own.
	Since   time.Time `json:"since"`
	Deleted bool      `json:"deleted,omitempty"` // and is being forgotten
	Changes []Change  `json:"changes"`           // oldest first

	revision uint64
}

// Change is who changed what of a destination, when and why.
type Change struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Why    string    `json:"why,omitempty"`
	Change string    `json:"change"` // registered, updated, paused, resumed, deleted
}

const (
	nameMax         = 64
	timeoutDefault  = 10 * time.Second
	timeoutMost     = 5 * time.Minute
	callsDefault    = 8
	callsMost       = 64
	attemptsDefault = 12
	attemptsMost    = 100
	giveUpDefault   = time.Hour
	giveUpMost      = 720 * time.Hour
	headersMost     = 32
	changesMost     = 50
)

// retry is for messages that fail: twice as long after each attempt.
func (d *Destination) retry() component.Retry {
	n := d.Attempts
	if n == 0 {
		n = attemptsDefault
	}
	return component.Retry{First: time.Second, Most: 10 * time.Minute, Attempts: n}
}

func (d *Destination) calls() int {
	if d.Calls == 0 {
		return callsDefault
	}
	return d.Calls
}

func (s *Settings) timeout() time.Duration { return duration(s.Timeout, timeoutDefault) }

func (s *Settings) giveUp() time.Duration { return duration(s.GiveUpAfter, giveUpDefault) }

func duration(text string, missing time.Duration) time.Duration {
	if text == "" {
		return missing
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0 // Valid has seen it
	}
	return d
}

// owes says whether a message was said when the destination was there already.
func (d *Destination) owes(m *message.Message) bool { return !m.Recorded().Before(d.Since) }

// version tells these settings from others.
func (d *Destination) version() string {
	raw, err := json.Marshal(struct {
		Settings
		Paused bool
		Since  time.Time
	}{d.Settings, d.Paused, d.Since})
	if err != nil {
		return "" // texts and numbers can be written
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

func checkName(name string) error {
	if name == "" || len(name) > nameMax || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return fmt.Errorf("name %q: want 1 to %d small letters, digits, - and _", name, nameMax)
	}
	return nil
}

// Valid says what is wrong with settings.
func (s *Settings) Valid() error {
	t := outbound.Target{URL: s.URL, Header: outbound.Header{}}
	if len(s.Headers) > headersMost {
		return fmt.Errorf("headers: %d; there may be %d", len(s.Headers), headersMost)
	}
	var names []string
	for i := range s.Headers {
		h := &s.Headers[i]
		if err := h.valid(); err != nil {
			return fmt.Errorf("headers[%d]: %w", i, err)
		}
		if name := strings.ToLower(h.Name); slices.Contains(names, name) {
			return fmt.Errorf("headers[%d]: %s is there twice", i, h.Name)
		} else {
			names = append(names, name)
		}
		t.Header[h.Name] = h.Value
	}
	if err := t.Valid(); err != nil {
		return err
	}
	if strings.Contains(s.URL, "?") {
		return fmt.Errorf("url: want one without a query; what is secret there would be seen, put it into a header")
	}
	switch {
	case s.Mode != "" && s.Mode != "binary" && s.Mode != "structured":
		return fmt.Errorf("mode %q; there are binary and structured", s.Mode)
	case s.Calls < 0 || s.Calls > callsMost:
		return fmt.Errorf("calls %d; want 1 to %d", s.Calls, callsMost)
	case s.Attempts < 0 || s.Attempts > attemptsMost:
		return fmt.Errorf("attempts %d; want 1 to %d", s.Attempts, attemptsMost)
	}
	for _, x := range []struct {
		name, text string
		most       time.Duration
	}{{"timeout", s.Timeout, timeoutMost}, {"give_up_after", s.GiveUpAfter, giveUpMost}} {
		if x.text == "" {
			continue
		}
		if d, err := time.ParseDuration(x.text); err != nil || d <= 0 || d > x.most {
			return fmt.Errorf("%s %q: want a duration up to %s, such as 10s", x.name, x.text, x.most)
		}
	}
	return nil
}
