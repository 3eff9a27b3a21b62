package twin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

// ref names a twin. An empty shadow is the unnamed one.
type ref struct{ device, shadow string }

// called is the name that errors call a twin by; AWS calls the unnamed one as its thing.
func (r ref) called() string {
	if r.shadow == "" {
		return r.device
	}
	return r.shadow
}

// hear answers a request, or drops the twins of a device that is no more. What is wrong with a request is told to whom
// asked, so no request dies.
func (t *Twins) hear(_ context.Context, tx component.Tx, m *message.Message) error {
	counts := false
	defer func() { t.cache.ended(counts) }()
	err := t.handle(tx, m)
	counts = err == nil
	return err
}

func (t *Twins) handle(tx component.Tx, m *message.Message) error {
	switch {
	case m.Subject == serviceplatform.TwinWanted:
		return t.wanted(tx, m)
	case m.Subject.Namespace() == message.ServicePlatform:
		return t.fact(tx, m)
	}
	id, name, request, ok := device.TwinRequest(m.Subject)
	if !ok || id == "" {
		return message.Rejectf(message.TopicInvalid, "%s names no twin", m.Subject)
	}
	if m.Will { // it goes to subscribers, and is no request: so AWS IoT has it, where a rule may make it one
		return component.ErrNotMatched
	}
	a := &act{t: t, tx: tx, m: m, ref: ref{id, name}, request: request}
	if name != "" && !shadow.CheckName(name) {
		return a.refuse(shadow.InvalidName())
	}
	was, err := t.load(tx, a.ref)
	if err != nil {
		return err
	}
	switch request {
	case "get":
		payload, refused := was.Get(m.Data, a.ref.called(), t.env.Now())
		if refused != nil {
			return a.refuse(refused)
		}
		return a.accept(payload)
	case "delete":
		return a.remove(was)
	}
	return a.update(was)
}

// wanted tells a twin to those inside who wish to read it, in the log of its device, so that it has its place among the
// twin's changes.
func (t *Twins) wanted(tx component.Tx, m *message.Message) error {
	var r device.TwinRef
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return message.Reject(message.NotDecodable, fmt.Errorf("%s: %w", m.Subject, err))
	}
	d, err := t.load(tx, ref{r.Device, r.Shadow})
	if err != nil {
		return err
	}
	data, err := json.Marshal(device.TwinRead{Shadow: r.Shadow, Document: d.Document(t.env.Now())})
	if err != nil {
		return err
	}
	return tx.Say(&message.Message{Subject: device.TwinReadSubject(r.Device), Device: r.Device, QoS: 1, ContentType: "application/json", Data: data})
}

// act is a request being answered.
type act struct {
	t       *Twins
	tx      component.Tx
	m       *message.Message
	ref     ref
	request string
	said    message.Message // written down when it is said, so that one does for all
}

func (a *act) by() shadow.Cause { return shadow.Cause{ID: a.m.ID, Source: a.m.Source} }

func (a *act) update(was *shadow.Doc) error {
	if !was.Exists() {
		refused, err := a.mayMake()
		if err != nil {
			return err
		}
		if refused != nil {
			return a.refuse(refused)
		}
	}
	u, refused := was.Update(a.m.Data, a.by(), a.t.env.Now(), a.t.limits)
	if refused != nil {
		if refused.Code == 409 {
			if err := a.conflict(was, refused); err != nil {
				return err
			}
		}
		return a.refuse(refused)
	}
	if err := a.t.store(a.tx, a.ref, was, u.After); err != nil {
		return err
	}
	// What is said is copied, so that one buffer does for all.
	b := buffers.Get().(*buffer)
	defer b.end()
	b.text = u.AppendAccepted(b.text[:0])
	if err := a.accept(b.text); err != nil {
		return err
	}
	if b.text = u.AppendDelta(b.text[:0]); len(b.text) > 0 {
		if err := a.say(b.text, "update", "delta"); err != nil {
			return err
		}
	}
	b.text = u.AppendDocuments(b.text[:0])
	if err := a.say(b.text, "update", "documents"); err != nil {
		return err
	}
	return a.changed(u.Record(a.m.Trace.ID), u.Before, u.After)
}

// buffer is what texts are made in that are copied at once.
type buffer struct{ text, state []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// bufferMax is how large a buffer may be to be kept for the next one.
const bufferMax = 1 << 20

func (b *buffer) end() {
	if cap(b.text)+cap(b.state) <= bufferMax {
		buffers.Put(b)
	}
}

// mayMake says whether the device may have a twin of that name, which is not there.
func (a *act) mayMake() (*shadow.Error, error) {
	gone, err := a.tx.Get(goneKey(a.ref.device))
	if err != nil {
		return nil, err
	}
	// What was on its way when the device was deleted does not bring its twin back.
	if gone != nil && !a.m.Recorded().After(timeOf(gone)) {
		return shadow.ThingNotFound(), nil
	}
	n := 0
	var bad error
	err = a.tx.Scan(devicePrefix(a.ref.device), func(_, v []byte) bool {
		d, err := shadow.Decode(v)
		if bad = err; err == nil && d.Exists() {
			n++
		}
		return bad == nil && n < a.t.shadows
	})
	if err == nil {
		err = bad
	}
	if err == nil && n >= a.t.shadows {
		return shadow.TooMany(a.t.shadows), nil
	}
	return nil, err
}

func (a *act) remove(was *shadow.Doc) error {
	is, payload, refused := was.Delete(a.m.Data, a.ref.called(), a.t.env.Now())
	if refused != nil {
		return a.refuse(refused)
	}
	if err := a.t.store(a.tx, a.ref, was, is); err != nil {
		return err
	}
	if err := a.accept(payload); err != nil {
		return err
	}
	return a.changed(was.Removal(a.by(), a.m.Trace.ID), was, is)
}

// fact hears of a device's registration.
func (t *Twins) fact(tx component.Tx, m *message.Message) error {
	var f serviceplatform.DeviceChanged
	if err := json.Unmarshal(m.Data, &f); err != nil {
		return message.Reject(message.NotDecodable, fmt.Errorf("%s: %w", m.Subject, err))
	}
	if f.Change != serviceplatform.Deleted {
		return component.ErrNotMatched
	}
	tx.Set(goneKey(f.Device), appendTime(nil, m.Recorded()))
	tx.Set(goneExpiryKey(m.Recorded(), f.Device), nil)
	var refs []ref
	var docs []*shadow.Doc
	var bad error
	err := tx.Scan(devicePrefix(f.Device), func(k, v []byte) bool {
		d, err := shadow.Decode(v)
		if bad = err; err != nil {
			return false
		}
		if d.Exists() {
			refs, docs = append(refs, parseTwinKey(k)), append(docs, d)
		}
		return true
	})
	if err == nil {
		err = bad
	}
	for i := 0; i < len(refs) && err == nil; i++ {
		a := &act{t: t, tx: tx, m: m, ref: refs[i]}
		is := docs[i].Gone(t.env.Now())
		if err = t.store(tx, a.ref, docs[i], is); err == nil {
			err = a.changed(docs[i].Removal(a.by(), m.Trace.ID), docs[i], is)
		}
	}
	return err
}

func (a *act) accept(payload []byte) error {
	awaited := a.t.hub.awaited(a.m.ID)
	if awaited {
		payload = slices.Clone(payload)
	}
	a.tx.After(func() {
		a.t.metrics.answered(a.request, "accepted")
		if awaited {
			a.t.hub.answer(a.m.ID, reply{payload: payload})
		}
	})
	return a.say(payload, a.request, "accepted")
}

func (a *act) refuse(e *shadow.Error) error {
	payload := e.Payload(a.t.env.Now())
	a.tx.After(func() {
		a.t.metrics.answered(a.request, "rejected")
		a.t.hub.answer(a.m.ID, reply{payload, e})
	})
	return a.say(payload, a.request, "rejected")
}

func (a *act) say(payload []byte, words ...string) error {
	a.said = message.Message{Subject: device.TwinSubject(a.ref.device, a.ref.shadow, words...), Device: a.ref.device, QoS: 1,
		ContentType: "application/json", Data: payload}
	if words[1] == "accepted" || words[1] == "rejected" {
		a.said.Correlation = a.m.Correlation
	}
	return a.tx.Say(&a.said)
}

// changed keeps a record, and tells of the change. Where there is none, nothing happened.
func (a *act) changed(r *shadow.Record, was, is *shadow.Doc) error {
	if r == nil {
		return nil
	}
	b := buffers.Get().(*buffer)
	defer b.end()
	b.text = r.Append(b.text[:0])
	a.tx.Set(recordKey(a.ref, r.Number), b.text)
	if r.Number > a.t.history {
		a.tx.Delete(recordKey(a.ref, r.Number-a.t.history))
	}
	c := device.TwinChanged{Device: a.ref.device, Shadow: a.ref.shadow, Change: r.Kind, Version: r.Version, At: r.At().UTC().Truncate(time.Second),
		Source: r.By.Source, Paths: r.Paths()}
	b.state = b.state[:0]
	if was.Exists() {
		b.state = was.AppendState(b.state)
	}
	n := len(b.state)
	if is.Exists() {
		b.state = is.AppendState(b.state)
	}
	c.Previous, c.Current = b.state[:n:n], b.state[n:]
	if a.t.hub.watched() {
		ref := a.ref
		a.tx.After(func() { a.t.hub.tell(ref, r) })
	}
	b.text = appendChanged(b.text[:0], &c)
	a.said = message.Message{Subject: device.TwinChangedSubject(a.ref.device), Device: a.ref.device, QoS: 1, ContentType: "application/json", Data: b.text}
	return a.tx.Say(&a.said)
}

// appendChanged writes what json.Marshal would, in a tenth of the time: it is said with each change.
func appendChanged(b []byte, c *device.TwinChanged) []byte {
	b = shadow.AppendText(append(b, `{"device":`...), c.Device)
	if c.Shadow != "" {
		b = shadow.AppendText(append(b, `,"shadow":`...), c.Shadow)
	}
	b = shadow.AppendText(append(b, `,"change":`...), c.Change)
	b = strconv.AppendUint(append(b, `,"version":`...), c.Version, 10)
	b = c.At.AppendFormat(append(b, `,"at":"`...), time.RFC3339Nano)
	b = shadow.AppendText(append(b, `","source":`...), c.Source)
	b = append(b, `,"paths":[`...)
	for i, p := range c.Paths {
		if i > 0 {
			b = append(b, ',')
		}
		b = shadow.AppendText(b, p)
	}
	b = append(b, ']')
	if len(c.Previous) > 0 {
		b = append(append(b, `,"previous":`...), c.Previous...)
	}
	if len(c.Current) > 0 {
		b = append(append(b, `,"current":`...), c.Current...)
	}
	return append(b, '}')
}

// Conflict is an update that was refused since another one had come before it.
type Conflict struct {
	At      time.Time       `json:"at"`
	Message message.ID      `json:"message"`
	Trace   message.TraceID `json:"trace"`
	Source  string          `json:"source"`
	Stated  uint64          `json:"stated"` // version
	Was     uint64          `json:"was"`    // version
	// Other is the update that had made the document what it was.
	Other shadow.Cause `json:"other"`
}

// conflict remembers a refused update. There are few, so that all of a twin are one value.
func (a *act) conflict(was *shadow.Doc, e *shadow.Error) error {
	list, err := conflicts(a.tx, a.ref)
	if err != nil {
		return err
	}
	list = append(list, Conflict{At: a.m.Recorded().UTC(), Message: a.m.ID, Trace: a.m.Trace.ID, Source: shadow.CutSource(a.m.Source), Stated: e.Stated, Was: was.Version, Other: was.Last()})
	list = slices.Delete(list, 0, max(0, len(list)-conflictsMax))
	v, err := json.Marshal(list)
	if err != nil {
		return err
	}
	a.tx.Set(conflictKey(a.ref), v)
	a.tx.After(a.t.metrics.conflicts.Inc)
	return nil
}
