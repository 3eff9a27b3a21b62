package deadletter

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Group is letters that look alike: they died at one component, for one reason, on messages of one kind, and what was said
// of them differs in numbers, names in quotation marks and ids only.
type Group struct {
	ID        string         `json:"id"`
	Component string         `json:"component"`
	Reason    message.Reason `json:"reason"`
	Kind      string         `json:"kind"`  // of the messages: a contract's subjects
	Shape     string         `json:"shape"` // what was said of them, without what differs
	Owner     string         `json:"owner"`
	Count     int64          `json:"count"`
	Bytes     int64          `json:"bytes"`
	First     time.Time      `json:"first"`   // failure of any that ever was in it
	Last      time.Time      `json:"last"`    // failure
	Example   message.ID     `json:"example"` // the newest letter
}

// groupsMax is how many groups are told apart. Beyond, letters go to one that has component and reason only, so that
// particulars which are never alike do not fill the store with groups of one.
const groupsMax = 10_000

// totals are over all letters.
type totals struct {
	Letters int64 `json:"total_letters"`
	Bytes   int64 `json:"total_bytes"`
	Groups  int64 `json:"total_groups"`
}

// reader reads the store: a transaction, or a view.
type reader interface {
	Get(key []byte) ([]byte, error)
}

func read[T any](r reader, key []byte) (v T, there bool, err error) {
	raw, err := r.Get(key)
	if err != nil || raw == nil {
		return v, false, err
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, false, fmt.Errorf("read %q in the store: %w", key[:1], err)
	}
	return v, true, nil
}

func write(tx component.Tx, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err == nil {
		tx.Set(key, raw)
	}
	return err
}

// join puts a letter into its group; it changes x.Group.
func (l *Letters) join(tx component.Tx, x *Letter) error {
	t, _, err := read[totals](tx, []byte{kindTotals})
	if err != nil {
		return err
	}
	kind, shape := l.kindOf(x.Subject), shapeOf(x.Detail)
	id := groupID(x.Component, x.Reason, kind, shape)
	g, there, err := read[Group](tx, groupKey(id))
	if err != nil {
		return err
	}
	if !there && t.Groups >= groupsMax {
		kind, shape = "", "(more kinds than are told apart)"
		id = groupID(x.Component, x.Reason, kind, shape)
		if g, there, err = read[Group](tx, groupKey(id)); err != nil {
			return err
		}
	}
	if !there {
		g = Group{ID: id, Component: x.Component, Reason: x.Reason, Kind: kind, Shape: shape, Owner: x.Owner, First: x.First}
		t.Groups++
	}
	g.Count++
	g.Bytes += int64(x.Bytes)
	g.Last, g.Example = x.Last, x.ID
	t.Letters++
	t.Bytes += int64(x.Bytes)
	x.Group = id
	tx.Set(memberKey(id, x.ID), nil)
	return firstError(write(tx, groupKey(id), g), l.total(tx, t))
}

// part takes a letter out of its group, which goes with its last one.
func (l *Letters) part(tx component.Tx, x *Letter) error {
	t, _, err := read[totals](tx, []byte{kindTotals})
	if err != nil {
		return err
	}
	g, there, err := read[Group](tx, groupKey(x.Group))
	if err != nil {
		return err
	}
	tx.Delete(memberKey(x.Group, x.ID))
	t.Letters--
	t.Bytes -= int64(x.Bytes)
	if g.Count--; there && g.Count > 0 {
		g.Bytes -= int64(x.Bytes)
		return firstError(write(tx, groupKey(x.Group), g), l.total(tx, t))
	}
	tx.Delete(groupKey(x.Group))
	t.Groups--
	return l.total(tx, t)
}

func (l *Letters) total(tx component.Tx, t totals) error {
	tx.After(func() {
		l.letters.Set(float64(t.Letters))
		l.bytes.Set(float64(t.Bytes))
	})
	return write(tx, []byte{kindTotals}, t)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// kindOf is what messages of a subject are one kind by: their contract, or else the subject with the entity left open.
func (l *Letters) kindOf(s message.Subject) string {
	if k := l.env.Catalog.Find(s); k != nil {
		return string(k.Subjects)
	}
	tokens := strings.Split(string(s), ".")
	if len(tokens) > 1 {
		tokens[1] = "*"
	}
	return strings.Join(tokens, ".")
}

func groupID(parts ...any) string {
	h := fnv.New64a()
	for _, p := range parts {
		_, _ = fmt.Fprintf(h, "%v\x00", p) // a hash takes everything
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// shapeMax bounds what two details are compared by.
const shapeMax = 200

// tells are words behind which a number says what happened, not to whom: a 404 and a 500 want different remedies.
var tells = map[string]bool{"answered": true, "status": true, "code": true}

// shapeOf is what was said of a letter without what differs from one to the next: what is in quotation marks, numbers, and
// words that are ids (hexadecimal with a digit).
func shapeOf(detail string) string {
	detail, _, _ = strings.Cut(detail, "\n") // a stack's addresses differ each time
	var b strings.Builder
	before := "" // the word
	for i := 0; i < len(detail) && b.Len() < shapeMax; {
		c := detail[i]
		if c == '"' || c == '`' {
			if end := strings.IndexByte(detail[i+1:], c); end >= 0 {
				b.WriteString(`"…"`)
				i += end + 2
				continue
			}
		}
		if !wordByte(c) {
			b.WriteByte(c)
			i++
			continue
		}
		end := i
		for end < len(detail) && wordByte(detail[end]) {
			end++
		}
		if word := detail[i:end]; tells[before] || word == "3rd_party" {
			b.WriteString(word)
		} else {
			b.WriteString(shapeOfWord(word))
		}
		before, i = detail[i:end], end
	}
	return b.String()
}

func wordByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c >= 0x80
}

func shapeOfWord(w string) string {
	digits := strings.ContainsAny(w, "0123456789")
	if digits && (len(w) >= 8 && strings.Trim(w, "0123456789abcdefABCDEF-") == "") {
		return "#"
	}
	if !digits {
		return w
	}
	var b strings.Builder
	number := false
	for i := range len(w) {
		if c := w[i]; c < '0' || c > '9' {
			b.WriteByte(c)
			number = false
		} else if !number {
			b.WriteByte('#')
			number = true
		}
	}
	return b.String()
}
