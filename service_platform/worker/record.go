package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
)

// The kinds of workers.
const (
	KindHTTP = "http" // is called at its URL
	KindSDK  = "sdk"  // its instances connect and ask for work
)

// Record says what a worker is.
type Record struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	// URL is where a worker of kind http is called.
	URL string `json:"url,omitempty"`
	// Mode is how a message is written for it: binary (the default) or structured, as CloudEvents' HTTP binding says.
	Mode string `json:"mode,omitempty"`
	// Headers go with each call. They may hold a token, and are never shown.
	Headers outbound.Header `json:"headers,omitempty"`
	// Hears are patterns that it hears beside what is said to it on service_platform.worker.<name>.invoke.
	Hears []message.Pattern `json:"hears,omitempty"`
	// Concurrency is how many calls are under way at once.
	Concurrency int `json:"concurrency,omitempty"`
	// Timeout is how long one call may take.
	Timeout string `json:"timeout,omitempty"`
	// Attempts is how often a message is tried before it is dead.
	Attempts int `json:"attempts,omitempty"`
	// Paused workers get nothing; what they hear waits.
	Paused bool `json:"paused,omitempty"`
}

const (
	nameMax            = 64
	concurrencyDefault = 16
	concurrencyMost    = 1024
	timeoutDefault     = 30 * time.Second
	timeoutMost        = 10 * time.Minute
	attemptsDefault    = 10
	attemptsMost       = 1000
	hearsMost          = 100
)

// complete fills in what was left out, and says what is wrong with the rest.
func (r *Record) complete() error {
	if r.Name == "" || len(r.Name) > nameMax || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return fmt.Errorf("name %q: want small letters, digits, - and _, %d at most", r.Name, nameMax)
	}
	if r.Kind == "" {
		if r.Kind = KindSDK; r.URL != "" {
			r.Kind = KindHTTP
		}
	}
	if r.Concurrency == 0 {
		r.Concurrency = concurrencyDefault
	}
	if r.Attempts == 0 {
		r.Attempts = attemptsDefault
	}
	if r.Timeout == "" {
		r.Timeout = timeoutDefault.String()
	}
	wait, err := time.ParseDuration(r.Timeout)
	switch {
	case err != nil || wait <= 0 || wait > timeoutMost:
		return fmt.Errorf("timeout %q: want a duration such as 30s, %s at most", r.Timeout, timeoutMost)
	case r.Concurrency < 1 || r.Concurrency > concurrencyMost:
		return fmt.Errorf("concurrency %d: want 1 to %d", r.Concurrency, concurrencyMost)
	case r.Attempts < 1 || r.Attempts > attemptsMost:
		return fmt.Errorf("attempts %d: want 1 to %d", r.Attempts, attemptsMost)
	case len(r.Hears) > hearsMost:
		return fmt.Errorf("hears: %d patterns; want %d at most", len(r.Hears), hearsMost)
	}
	for _, p := range r.Hears {
		if err := p.Valid(); err != nil {
			return fmt.Errorf("hears: %w", err)
		}
		if !message.Pattern(">").Covers(p) {
			return fmt.Errorf("hears: %s begins with $, which workers do not hear", p)
		}
	}
	switch r.Kind {
	case KindHTTP:
		if r.Mode != "" && r.Mode != "binary" && r.Mode != "structured" {
			return fmt.Errorf("mode %q: want binary or structured", r.Mode)
		}
		return r.target().Valid()
	case KindSDK:
		if r.URL != "" || r.Mode != "" || len(r.Headers) > 0 {
			return fmt.Errorf("url, mode and headers are of kind http; instances of kind sdk connect by themselves")
		}
		return nil
	}
	return fmt.Errorf("kind %q: want %s or %s", r.Kind, KindHTTP, KindSDK)
}

func (r *Record) timeout() time.Duration {
	d, err := time.ParseDuration(r.Timeout)
	if err != nil {
		return timeoutDefault
	}
	return d
}

func (r *Record) target() *outbound.Target {
	return &outbound.Target{URL: r.URL, Header: r.Headers, Timeout: r.timeout()}
}

// hears is all that the worker hears.
func (r *Record) hears() []message.Pattern {
	return append([]message.Pattern{work(r.Name)}, r.Hears...)
}

// version tells a record from others, as far as the worker must be started anew where it differs.
func (r *Record) version() string {
	same := *r
	same.Paused = false
	raw, err := json.Marshal(same)
	if err != nil {
		panic(fmt.Sprintf("a worker's record cannot be written: %v", err)) // strings and numbers
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}

// shown is the record without its secrets.
func (r Record) shown() Record {
	r.URL = outbound.Shown(r.URL)
	if len(r.Headers) > 0 {
		hidden := outbound.Header{}
		for name := range r.Headers {
			hidden[name] = "(hidden)"
		}
		r.Headers = hidden
	}
	return r
}
