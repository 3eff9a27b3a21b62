package deadletter

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Letter is a dead letter as a list shows it.
type Letter struct {
	ID        message.ID      `json:"id"`
	State     string          `json:"state"` // dead, or retrying
	Reason    message.Reason  `json:"reason"`
	Detail    string          `json:"detail"`
	Component string          `json:"component"` // the consumer it died at
	Owner     string          `json:"owner"`     // the team whose contract the message is of; empty for none
	Attempts  int             `json:"attempts"`
	First     time.Time       `json:"first"` // failure
	Last      time.Time       `json:"last"`  // failure
	Device    string          `json:"device,omitempty"`
	Subject   message.Subject `json:"subject"`
	Message   message.ID      `json:"message"`
	Trace     message.TraceID `json:"trace"`
	Group     string          `json:"group"`
	Job       message.ID      `json:"job,omitzero"` // that tries it again
	Edited    bool            `json:"edited,omitempty"`
	Bytes     int             `json:"bytes"`
}

// The states of a letter.
const (
	Dead     = "dead"
	Retrying = "retrying"
)

// detailMax is how much of the particulars a list has; the letter itself has all.
const detailMax = 300

// letterOf reads a dead letter. Where the message inside cannot be read, what the letter itself says of it has to do.
func (l *Letters) letterOf(m *message.Message, d *operator.Dead) Letter {
	x := Letter{ID: m.ID, State: Dead, Reason: d.Reason, Detail: cut(d.Detail, detailMax), Component: d.Component, Attempts: d.Attempts,
		First: d.First, Last: d.Last, Message: m.Cause, Trace: m.Trace.ID, Device: m.Device, Bytes: len(m.Data)}
	if original, err := d.Message(); err == nil {
		x.Message, x.Device, x.Subject = original.ID, strings.Clone(original.Device), message.Subject(strings.Clone(string(original.Subject)))
		if k := l.env.Catalog.Find(x.Subject); k != nil {
			x.Owner = k.Owner
		}
	}
	return x
}

func cut(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// The keys of the store. A letter's summary is apart from the letter, so that lists read little.
const (
	kindSummary = 's' // letter
	kindLetter  = 'o' // letter: what was heard, untouched
	kindEdited  = 'e' // letter: a record to be handled in place of the original
	kindMember  = 'i' // group, letter
	kindGroup   = 'g' // group
	kindJob     = 'j' // job
	kindResult  = 'r' // job, letter
	kindAudit   = 'a' // entry
	kindTotals  = 't'
)

func key(kind byte, id message.ID) []byte {
	return append(append(make([]byte, 0, 17), kind), id[:]...)
}

func memberKey(group string, id message.ID) []byte {
	return append(append([]byte{kindMember}, group...), id[:]...)
}

func groupKey(group string) []byte { return append([]byte{kindGroup}, group...) }

func resultKey(job, letter message.ID) []byte { return append(key(kindResult, job), letter[:]...) }

// idOf is the id at the end of a key.
func idOf(k []byte) (id message.ID) {
	copy(id[:], k[max(0, len(k)-len(id)):])
	return id
}

const summaryVersion = 1

// encode writes a summary: version, state, edited (1 byte each), reason, attempts (2 each), first and last failure in
// Unix nanoseconds (8 each), bytes (4), message, trace, job (16 each), all big-endian; then group, component, owner, device,
// subject and detail, each behind its length (2). A list of a million is read in a second, which JSON is not.
func (x *Letter) encode() []byte {
	be := binary.BigEndian
	b := append(make([]byte, 0, 160+len(x.Detail)), summaryVersion, flag(x.State == Retrying), flag(x.Edited))
	b = be.AppendUint16(be.AppendUint16(b, uint16(x.Reason)), uint16(min(x.Attempts, 1<<16-1)))
	b = be.AppendUint64(be.AppendUint64(b, uint64(x.First.UnixNano())), uint64(x.Last.UnixNano()))
	b = be.AppendUint32(b, uint32(x.Bytes))
	b = append(append(append(b, x.Message[:]...), x.Trace[:]...), x.Job[:]...)
	for _, s := range []string{x.Group, x.Component, x.Owner, x.Device, string(x.Subject), x.Detail} {
		s = s[:min(len(s), 1<<16-1)]
		b = append(be.AppendUint16(b, uint16(len(s))), s...)
	}
	return b
}

const summaryFixed = 3 + 4 + 16 + 4 + 48

var errSummary = errors.New("a letter's summary in the store is damaged")

// decode reads what encode wrote; the texts are copies.
func (x *Letter) decode(k, b []byte) error {
	if len(b) < summaryFixed || b[0] != summaryVersion {
		return errSummary
	}
	be := binary.BigEndian
	*x = Letter{ID: idOf(k), State: Dead, Edited: b[2] == 1, Reason: message.Reason(be.Uint16(b[3:])), Attempts: int(be.Uint16(b[5:])),
		First: time.Unix(0, int64(be.Uint64(b[7:]))).UTC(), Last: time.Unix(0, int64(be.Uint64(b[15:]))).UTC(), Bytes: int(be.Uint32(b[23:]))}
	if b[1] == 1 {
		x.State = Retrying
	}
	copy(x.Message[:], b[27:])
	copy(x.Trace[:], b[43:])
	copy(x.Job[:], b[59:])
	texts := string(b[summaryFixed:]) // one copy for all of them
	at := 0
	for _, to := range []*string{&x.Group, &x.Component, &x.Owner, &x.Device, (*string)(&x.Subject), &x.Detail} {
		if len(texts) < at+2 {
			return errSummary
		}
		n := int(texts[at])<<8 | int(texts[at+1])
		if len(texts) < at+2+n {
			return errSummary
		}
		*to = texts[at+2 : at+2+n]
		at += 2 + n
	}
	return nil
}

func flag(set bool) byte {
	if set {
		return 1
	}
	return 0
}
