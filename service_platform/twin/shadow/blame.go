package shadow

import (
	"encoding/json"
	"time"
)

// Field is a value of a document and the messages behind it.
type Field struct {
	Path  string          `json:"path"` // JSON pointer in the state
	Value json.RawMessage `json:"value"`
	// Changed is the message that made the value what it is; Wrote the last one that said it, which the metadata's
	// timestamp is of.
	Changed   Cause     `json:"changed"`
	ChangedAt time.Time `json:"changed_at"`
	Wrote     Cause     `json:"wrote"`
	WroteAt   time.Time `json:"wrote_at"`
}

// Blame gives all values with the messages behind them, desired before reported, by name.
func (d *Doc) Blame() []Field {
	list := []Field{}
	var walk func(path []string, fields []node)
	walk = func(path []string, fields []node) {
		for i := range fields {
			f := &fields[i]
			at := append(path, f.key)
			if !f.value() {
				walk(at, f.fields)
				continue
			}
			changed, wrote := d.causes[f.change], d.causes[f.wrote]
			list = append(list, Field{Path: pointer(at), Value: json.RawMessage(f.text), Changed: changed, ChangedAt: changed.At(),
				Wrote: wrote, WroteAt: wrote.At()})
		}
	}
	walk([]string{"/desired"}, d.desired)
	walk([]string{"/reported"}, d.reported)
	return list
}

// Drifted is a desired value that is not reported.
type Drifted struct {
	Path     string          `json:"path"` // JSON pointer in the section
	Desired  json.RawMessage `json:"desired"`
	Reported json.RawMessage `json:"reported,omitempty"` // nothing where there is none
	// Since is when the two began to differ, as far as the document tells: when the one that changed last did.
	Since time.Time `json:"since"`
	// By is the message that desired it.
	By Cause `json:"by"`
}

// Drifts gives all desired values that are not reported.
func (d *Doc) Drifts() []Drifted {
	list := []Drifted{}
	d.eachDrift([]string{""}, diff(d.desired, d.reported), d.reported, func(path []string, want, have *node, since time.Time) {
		x := Drifted{Path: pointer(path), Desired: json.RawMessage(want.text), Since: since, By: d.causes[want.change]}
		if have != nil {
			x.Reported = appendNode(nil, have)
		}
		list = append(list, x)
	})
	return list
}
