package schema

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// What is said is bounded, since it goes into lists, logs and packets.
const (
	sentenceMax = 400 // bytes
	pointerMax  = 160
	valueMax    = 48
	choicesMax  = 8 // of an enum
)

// whole is what stands where the pointer would be empty.
const whole = "(the whole)"

// finding is one fault: where, and what.
type finding struct {
	at   []string
	text string
	want []string // types, where the type is the fault
}

// sentence makes one line of all that the validator found.
func sentence(e *jsonschema.ValidationError, doc any) string {
	f := find(e, doc)
	return clip(pointer(f.at)+": "+f.text, sentenceMax)
}

// find goes down to the fault that is to be told.
func find(e *jsonschema.ValidationError, doc any) finding {
	switch k := e.ErrorKind.(type) {
	case *kind.AnyOf:
		return nearest(e, doc)
	case *kind.OneOf:
		if len(k.Subschemas) == 0 {
			return nearest(e, doc)
		}
	case *kind.Schema, *kind.Group, *kind.AllOf, *kind.Reference:
		if len(e.Causes) > 0 {
			return slices.MinFunc(findings(e, doc), func(a, b finding) int { return cmp.Or(order(a.at, b.at), cmp.Compare(a.text, b.text)) })
		}
	}
	return leaf(e, doc)
}

func findings(e *jsonschema.ValidationError, doc any) (list []finding) {
	for _, c := range e.Causes {
		list = append(list, find(c, doc))
	}
	return list
}

// nearest is the fault of the alternative that the data comes nearest to: the one that was followed furthest.
func nearest(e *jsonschema.ValidationError, doc any) finding {
	list := findings(e, doc)
	if len(list) == 0 {
		return leaf(e, doc)
	}
	best := slices.MaxFunc(list, func(a, b finding) int { return cmp.Compare(len(a.at), len(b.at)) })
	if len(best.at) > len(e.InstanceLocation) {
		best.text += fmt.Sprintf(" (the nearest of %d alternatives)", len(list))
		return best
	}
	var want []string // types, where each alternative wants another
	for _, f := range list {
		want = append(want, f.want...)
	}
	if best.want != nil {
		slices.Sort(want)
		best.want = slices.Compact(want)
		best.text = "got " + typeName(lookup(doc, best.at)) + ", want " + strings.Join(best.want, " or ")
	}
	return best
}

// leaf tells of one fault.
func leaf(e *jsonschema.ValidationError, doc any) finding {
	f := finding{at: e.InstanceLocation}
	under := func(name string) { f.at = append(slices.Clip(f.at), name) }
	v := lookup(doc, f.at)
	say := func(format string, args ...any) { f.text = fmt.Sprintf(format, args...) }
	switch k := e.ErrorKind.(type) {
	case *kind.Type:
		f.want = k.Want
		f.text = "got " + k.Got + ", want " + strings.Join(k.Want, " or ")
	case *kind.Const:
		say("got %s, want %s", show(v), show(k.Want))
	case *kind.Enum:
		say("got %s, want %s", show(v), choices(k.Want))
	case *kind.Format:
		say("got %s, want the format %s", show(v), clip(k.Want, valueMax))
	case *kind.Required:
		under(k.Missing[0])
		say("got nothing, want a value: it is required")
	case *kind.DependentRequired:
		under(k.Missing[0])
		say("got nothing, want a value: it is required beside %s", quote(k.Prop))
	case *kind.AdditionalProperties:
		under(slices.Min(k.Properties))
		say("got a property that the contract does not know, want none")
	case *kind.FalseSchema:
		say("got %s, want nothing there", typeName(v))
	case *kind.PropertyNames:
		f.at = holder(doc, len(f.at), k.Property) // the validator has used the slice again for what it checked next
		under(k.Property)
		say("got a name that the contract does not allow")
	case *kind.MinProperties:
		say("got %s, want at least %d", many(k.Got, "property"), k.Want)
	case *kind.MaxProperties:
		say("got %s, want at most %d", many(k.Got, "property"), k.Want)
	case *kind.MinItems:
		say("got %s, want at least %d", many(k.Got, "item"), k.Want)
	case *kind.MaxItems:
		say("got %s, want at most %d", many(k.Got, "item"), k.Want)
	case *kind.UniqueItems:
		under(strconv.Itoa(k.Duplicates[1]))
		say("got the same as item %d, want no item twice", k.Duplicates[0])
	case *kind.Contains:
		say("got no item of the kind that is wanted, want at least 1")
	case *kind.MinContains:
		say("got %s of the kind that is wanted, want at least %d", many(len(k.Got), "item"), k.Want)
	case *kind.MaxContains:
		say("got %s of a kind that is limited, want at most %d", many(len(k.Got), "item"), k.Want)
	case *kind.MinLength:
		say("got %s, want at least %d", many(k.Got, "character"), k.Want)
	case *kind.MaxLength:
		say("got %s, want at most %d", many(k.Got, "character"), k.Want)
	case *kind.Pattern:
		say("got %s, want what matches %s", show(v), quote(k.Want))
	case *kind.Minimum:
		say("got %s, want at least %s", show(v), exact(k.Want))
	case *kind.Maximum:
		say("got %s, want at most %s", show(v), exact(k.Want))
	case *kind.ExclusiveMinimum:
		say("got %s, want more than %s", show(v), exact(k.Want))
	case *kind.ExclusiveMaximum:
		say("got %s, want less than %s", show(v), exact(k.Want))
	case *kind.MultipleOf:
		say("got %s, want a multiple of %s", show(v), exact(k.Want))
	case *kind.OneOf:
		if len(k.Subschemas) == 2 {
			say("got what fits the alternatives %d and %d, want exactly one", k.Subschemas[0]+1, k.Subschemas[1]+1)
		} else {
			say("got what fits no alternative")
		}
	case *kind.Not:
		say("got %s, which the contract excludes", show(v))
	case *kind.RefCycle:
		say("the schema refers to itself without end at %s", quote(k.KeywordLocation1))
	default:
		f.text = strings.TrimPrefix((&jsonschema.ValidationError{ErrorKind: k}).Error(), "at '': ")
	}
	return f
}

func many(n int, of string) string {
	switch {
	case n == 1:
		return "1 " + of
	case strings.HasSuffix(of, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(of, "y"))
	}
	return fmt.Sprintf("%d %ss", n, of)
}

// holder is the first object that has a property of the name, so many levels down; nil where none has.
func holder(doc any, down int, name string) []string {
	var first []string
	var walk func(v any, at []string)
	walk = func(v any, at []string) {
		switch v := v.(type) {
		case map[string]any:
			if _, there := v[name]; there && len(at) == down && (first == nil || order(at, first) < 0) {
				first = slices.Clone(at)
			}
			for k, inner := range v {
				if len(at) < down {
					walk(inner, append(at, k))
				}
			}
		case []any:
			for i, inner := range v {
				if len(at) < down {
					walk(inner, append(at, strconv.Itoa(i)))
				}
			}
		}
	}
	walk(doc, []string{})
	return first
}

// order sorts pointers: items by their number, the outer before the inner.
func order(a, b []string) int {
	return slices.CompareFunc(a, b, func(x, y string) int {
		i, errI := strconv.Atoi(x)
		j, errJ := strconv.Atoi(y)
		if errI == nil && errJ == nil {
			return cmp.Compare(i, j)
		}
		return cmp.Compare(x, y)
	})
}

// lookup is what the document has at a place; nil where there is nothing.
func lookup(doc any, at []string) any {
	for _, token := range at {
		switch v := doc.(type) {
		case map[string]any:
			doc = v[token]
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(v) {
				return nil
			}
			doc = v[i]
		default:
			return nil
		}
	}
	return doc
}

// pointer writes a JSON pointer (RFC 6901). What cannot be printed is escaped, and a long one loses its middle.
func pointer(at []string) string {
	if len(at) == 0 {
		return whole
	}
	var b strings.Builder
	for _, token := range at {
		b.WriteByte('/')
		q := strconv.QuoteToGraphic(token)
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1", `\"`, `"`, `\\`, `\`).Replace(q[1 : len(q)-1]))
	}
	s := b.String()
	if len(s) <= pointerMax {
		return s
	}
	return clip(s, pointerMax/2) + strings.ToValidUTF8(s[len(s)-pointerMax/2:], "")
}

// show writes a value as a person needs it.
func show(v any) string {
	switch v := v.(type) {
	case string:
		return quote(v)
	case json.Number:
		return clip(v.String(), valueMax)
	case bool:
		return strconv.FormatBool(v)
	case nil:
		return "null"
	}
	return "an " + typeName(v)
}

func choices(list []any) string {
	var words []string
	for i, v := range list {
		if i == choicesMax {
			words = append(words, fmt.Sprintf("… (%d in all)", len(list)))
			break
		}
		words = append(words, show(v))
	}
	if len(words) == 1 {
		return words[0]
	}
	return "one of " + strings.Join(words, ", ")
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case json.Number:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	}
	return "object"
}

// exact writes a number of the schema without losing a digit.
func exact(r *big.Rat) string {
	if n, finite := r.FloatPrec(); finite {
		return clip(r.FloatString(n), valueMax)
	}
	return clip(r.RatString(), valueMax)
}

func quote(s string) string { return strconv.QuoteToGraphic(clip(s, valueMax)) }

// clip cuts a text between two characters.
func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}
