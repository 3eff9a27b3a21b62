package deadletter

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// hear takes a letter in, or what became of one.
func (l *Letters) hear(_ context.Context, tx component.Tx, m *message.Message) error {
	if m.Subject.Token(1) == "retried" {
		var r operator.Retried
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return message.Reject(message.NotDecodable, err)
		}
		return l.settle(tx, r.Letter, r.Result, r.Detail)
	}
	var d operator.Dead
	if err := json.Unmarshal(m.Data, &d); err != nil {
		return message.Reject(message.NotDecodable, err)
	}
	if !d.Again.IsZero() { // this one has the account now
		if err := l.settle(tx, d.Again, operator.RetryDead, d.Detail); err != nil {
			return err
		}
	}
	if raw, err := tx.Get(key(kindSummary, m.ID)); err != nil || raw != nil {
		return err
	}
	x := l.letterOf(m, &d)
	if err := l.join(tx, &x); err != nil {
		return err
	}
	tx.Set(key(kindLetter, x.ID), m.Data)
	tx.Set(key(kindSummary, x.ID), x.encode())
	return nil
}

// summary reads a letter; nil where there is none (any more).
func summary(r reader, id message.ID) (*Letter, error) {
	k := key(kindSummary, id)
	raw, err := r.Get(k)
	if err != nil || raw == nil {
		return nil, err
	}
	x := new(Letter)
	return x, x.decode(k, raw)
}

// settle notes what became of a letter that was tried again.
func (l *Letters) settle(tx component.Tx, id message.ID, result, detail string) error {
	x, err := summary(tx, id)
	if err != nil || x == nil || x.State != Retrying {
		return err // told twice, or dropped for its age meanwhile
	}
	job := x.Job
	if result == operator.RetryRefused {
		x.State, x.Job = Dead, message.ID{}
		tx.Set(key(kindSummary, id), x.encode())
	} else if err := l.remove(tx, x); err != nil {
		return err
	}
	return l.took(tx, job, Result{Letter: id, Message: x.Message, Component: x.Component, Device: x.Device, Result: result, Detail: cut(strings.Clone(detail), detailMax), At: tx.Now()})
}

// remove forgets a letter.
func (l *Letters) remove(tx component.Tx, x *Letter) error {
	tx.Delete(key(kindSummary, x.ID))
	tx.Delete(key(kindLetter, x.ID))
	if x.Edited {
		tx.Delete(key(kindEdited, x.ID))
	}
	return l.part(tx, x)
}
