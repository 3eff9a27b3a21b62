package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
)

// Twin is one of the device's twins: what it should be (desired) and what it says it is (reported), kept by the platform.
// All methods may be called by any number of goroutines, also in the handlers of messages.
type Twin struct {
	c      *Client
	name   string
	prefix string        // of its topics
	gate   chan struct{} // held by who subscribes to the answers
	hears  int           // how many of its answers are subscribed to; gate guards it
	watch  *watch        // of OnDelta; c.mu guards it
}

// TwinDocument is a twin as the platform has it. Sections that are empty are nil.
type TwinDocument struct {
	Version  uint64
	At       time.Time       // when the platform answered; whole seconds
	Desired  json.RawMessage // what the device should be
	Reported json.RawMessage // what it said it is
	Delta    json.RawMessage // what of desired is not reported
	Metadata json.RawMessage // when each value was written, by section
}

// TwinUpdate is what is to be changed. Only the fields that are named change; one that is null goes.
type TwinUpdate struct {
	// Desired and Reported are anything that JSON makes an object of. A section that is nil stays as it is; one that is
	// json.RawMessage("null") goes.
	Desired, Reported any
	// Version is the twin's as the caller knows it: where it has another one by now, the update is refused with code 409.
	// Zero updates whatever there is.
	Version uint64
}

// Delta is all that is desired and not reported.
type Delta struct {
	Version uint64
	At      time.Time       // when it was said; whole seconds
	State   json.RawMessage // an object
	Trace   message.Trace   // of the message that led to it; zero where it was found by asking
}

// Decode reads the state into a value, as json.Unmarshal does.
func (d Delta) Decode(v any) error { return json.Unmarshal(d.State, v) }

// TwinError is the twin's no: the request reached it and was refused.
type TwinError struct {
	Request string // get, update or delete
	Code    int    // as of HTTP: 404 where there is no twin, 409 where Version is not its version
	Message string
}

// Error says what was refused and why.
func (e *TwinError) Error() string {
	return fmt.Sprintf("%s refused: %d %s", e.Request, e.Code, e.Message)
}

// Twin gives one of the device's twins; the unnamed one where name is empty. It need not exist: the first update makes it.
func (c *Client) Twin(name string) *Twin {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.twins[name]
	if t == nil {
		t = &Twin{c: c, name: name, prefix: "twin/", gate: make(chan struct{}, 1)}
		if name != "" {
			t.prefix += "name/" + name + "/"
		}
		c.twins[name] = t
	}
	return t
}

// Get asks for the twin. Where there is none, the error is a *TwinError with code 404.
func (t *Twin) Get(ctx context.Context) (TwinDocument, error) {
	b, err := t.ask(ctx, "get", nil, message.Trace{})
	if err != nil {
		return TwinDocument{}, err
	}
	return readDocument(b)
}

// Report tells what the device is: anything that JSON makes an object of, whose fields are merged into what is reported.
// It returns when the twin has it.
func (t *Twin) Report(ctx context.Context, reported any) error {
	_, err := t.Update(ctx, TwinUpdate{Reported: reported})
	return err
}

// Update changes the twin, and gives its version then. It is told at least once: after a break the same may be done twice,
// which changes nothing but the version.
func (t *Twin) Update(ctx context.Context, u TwinUpdate) (version uint64, err error) {
	return t.update(ctx, u, message.Trace{})
}

func (t *Twin) update(ctx context.Context, u TwinUpdate, trace message.Trace) (version uint64, err error) {
	request := struct {
		State   map[string]any `json:"state"`
		Version uint64         `json:"version,omitempty"`
	}{map[string]any{}, u.Version}
	if u.Desired != nil {
		request.State["desired"] = u.Desired
	}
	if u.Reported != nil {
		request.State["reported"] = u.Reported
	}
	b, err := json.Marshal(request)
	if err != nil {
		return 0, fmt.Errorf("update %s: %w", t.called(), err)
	}
	if b, err = t.ask(ctx, "update", b, trace); err != nil {
		return 0, err
	}
	d, err := readDocument(b)
	return d.Version, err
}

// Delete removes the twin. What is updated later begins a new one, whose version goes on for two days.
func (t *Twin) Delete(ctx context.Context) error {
	_, err := t.ask(ctx, "delete", nil, message.Trace{})
	return err
}

func (t *Twin) called() string {
	if t.name == "" {
		return "the twin of " + t.c.o.Device
	}
	return "the twin " + t.name + " of " + t.c.o.Device
}

// ask says a request and waits for its answer, by its correlation: others may ask the same twin, and are answered here too.
func (t *Twin) ask(ctx context.Context, request string, data []byte, trace message.Trace) ([]byte, error) {
	failed := func(err error) error { return fmt.Errorf("%s %s: %w", request, t.called(), err) }
	if err := t.hear(ctx); err != nil {
		return nil, failed(err)
	}
	c := t.c
	key := message.NewID(time.Now())
	answer := make(chan asked, 1)
	c.mu.Lock()
	c.asked[string(key[:])] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.asked, string(key[:]))
	}()
	o := PublishOptions{ContentType: "application/json", Correlation: key[:], Trace: trace}
	if _, err := c.Publish(ctx, t.prefix+request, data, o); err != nil {
		return nil, failed(err)
	}
	select {
	case a := <-answer:
		if !a.refused {
			return a.data, nil
		}
		e := &TwinError{Request: request}
		if err := json.Unmarshal(a.data, e); err != nil {
			return nil, failed(err)
		}
		return nil, failed(e)
	case <-ctx.Done():
		return nil, failed(fmt.Errorf("stored, and not answered: %w", context.Cause(ctx)))
	case <-c.ctx.Done():
		return nil, failed(ErrClosed)
	}
}

// asked is the answer to a request.
type asked struct {
	data    []byte
	refused bool
}

// hear subscribes to the twin's answers, once.
func (t *Twin) hear(ctx context.Context) error {
	select {
	case t.gate <- struct{}{}:
		defer func() { <-t.gate }()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.c.ctx.Done():
		return ErrClosed
	}
	if strings.ContainsAny(t.name, "/+#\x00") {
		return fmt.Errorf("a twin's name is one level of a topic; %q is not", t.name)
	}
	for _, word := range answerWords[t.hears:] {
		s := &subscription{filter: t.prefix + "+/" + word, now: true, handle: func(_ context.Context, m Message) { t.c.answer(m, word == "rejected") }}
		if err := t.c.subscribe(ctx, s); err != nil {
			return err
		}
		t.hears++
	}
	return nil
}

var answerWords = []string{"accepted", "rejected"}

// answer hands an answer to who waits for it.
func (c *Client) answer(m Message, refused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if waits := c.asked[string(m.Correlation)]; waits != nil {
		select {
		case waits <- asked{m.Data, refused}:
		default: // it has one: the request was told twice
		}
	}
}

// twinAnswer says whether a topic is an answer of a twin: old news when nobody waits for it any more.
func (c *Client) twinAnswer(topic string) bool {
	rest, ok := strings.CutPrefix(topic, "device/"+c.o.Device+"/twin/")
	if !ok {
		return false
	}
	switch rest[strings.LastIndexByte(rest, '/')+1:] {
	case "accepted", "rejected", "delta":
		return true
	}
	return false
}

func readDocument(b []byte) (TwinDocument, error) {
	var r struct {
		State     struct{ Desired, Reported, Delta json.RawMessage }
		Metadata  json.RawMessage
		Version   uint64
		Timestamp int64
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return TwinDocument{}, fmt.Errorf("read the twin's answer: %w", err)
	}
	return TwinDocument{Version: r.Version, At: time.Unix(r.Timestamp, 0), Desired: r.State.Desired, Reported: r.State.Reported,
		Delta: r.State.Delta, Metadata: r.Metadata}, nil
}
