package deadletter

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Filter selects letters: those of which all is true that is said here.
type Filter struct {
	IDs       []message.ID    `json:"ids,omitempty"`
	Group     string          `json:"group,omitempty"`
	Component string          `json:"component,omitempty"`
	Reason    message.Reason  `json:"reason,omitzero"`
	Device    string          `json:"device,omitempty"`
	Owner     string          `json:"owner,omitempty"`
	Subject   message.Pattern `json:"subject,omitempty"` // that selects the message's subject
	Text      string          `json:"text,omitempty"`    // in the particulars
	Since     time.Time       `json:"since,omitzero"`    // of the last failure
	Until     time.Time       `json:"until,omitzero"`
}

// check says what is wrong with a filter.
func (f *Filter) check() error {
	if f.Subject != "" {
		if err := f.Subject.Valid(); err != nil {
			return err
		}
	}
	if len(f.IDs) > idsMax {
		return fmt.Errorf("%d ids; a filter takes %d, and more are selected by group, component or reason", len(f.IDs), idsMax)
	}
	if !f.Until.IsZero() && f.Until.Before(f.Since) {
		return fmt.Errorf("until %s is before since %s", f.Until.Format(time.RFC3339), f.Since.Format(time.RFC3339))
	}
	return nil
}

const idsMax = 1000

// empty says that it selects everything.
func (f *Filter) empty() bool {
	return len(f.IDs) == 0 && f.Group == "" && f.Component == "" && f.Reason == 0 && f.Device == "" && f.Owner == "" && f.Subject == "" &&
		f.Text == "" && f.Since.IsZero() && f.Until.IsZero()
}

func (f *Filter) selects(x *Letter) bool {
	return (f.Group == "" || f.Group == x.Group) && (f.Component == "" || f.Component == x.Component) && (f.Reason == 0 || f.Reason == x.Reason) &&
		(f.Device == "" || f.Device == x.Device) && (f.Owner == "" || f.Owner == x.Owner) && (f.Subject == "" || x.Subject != "" && f.Subject.Matches(x.Subject)) &&
		(f.Text == "" || strings.Contains(x.Detail, f.Text)) && (f.Since.IsZero() || !x.Last.Before(f.Since)) && (f.Until.IsZero() || x.Last.Before(f.Until)) &&
		(len(f.IDs) == 0 || slices.Contains(f.IDs, x.ID))
}

// walk calls take for the letters that a filter selects, with ids behind after and up to upto (zero for all), in the order
// of their ids or backwards, until it gives false or looked are looked at. reached is the last one looked at; more says that
// there may be others behind it. x is take's for the call only.
func walk(v component.View, f *Filter, after, upto message.ID, backwards bool, looked int, take func(x *Letter) bool) (reached message.ID, more bool, err error) {
	var bad error
	var x Letter
	consider := func(id message.ID, raw []byte) bool {
		if looked--; looked < 0 {
			more = true
			return false
		}
		if bad = x.decode(key(kindSummary, id), raw); bad != nil {
			return false
		}
		if f.selects(&x) && !take(&x) {
			more = true
			return false
		}
		reached = id
		return true
	}
	if len(f.IDs) > 0 {
		ids := slices.Clone(f.IDs)
		slices.SortFunc(ids, func(a, b message.ID) int { return bytes.Compare(a[:], b[:]) })
		if backwards {
			slices.Reverse(ids)
		}
		for _, id := range slices.Compact(ids) {
			if bytes.Compare(id[:], after[:]) <= 0 || !upto.IsZero() && bytes.Compare(id[:], upto[:]) > 0 {
				continue
			}
			raw, err := v.Get(key(kindSummary, id))
			if err != nil {
				return reached, more, err
			}
			if raw != nil && !consider(id, raw) {
				break
			}
		}
		return reached, more, bad
	}
	prefix := []byte{kindSummary}
	if f.Group != "" {
		prefix = append([]byte{kindMember}, f.Group...)
	}
	from, to := append(slices.Clone(prefix), append(after[:], 0)...), behind(prefix)
	if after.IsZero() {
		from = prefix
	}
	if !upto.IsZero() {
		to = append(slices.Clone(prefix), append(upto[:], 0)...)
	}
	err = v.Range(from, to, backwards, func(k, raw []byte) bool {
		if f.Group != "" {
			if raw, bad = v.Get(key(kindSummary, idOf(k))); bad != nil || raw == nil {
				return bad == nil
			}
		}
		return consider(idOf(k), raw)
	})
	return reached, more, errors.Join(err, bad)
}

// behind is the first key behind all that begin so.
func behind(prefix []byte) []byte {
	end := slices.Clone(prefix)
	end[len(end)-1]++ // a kind, or the last character of a group's id: never 255
	return end
}
