package schema

import (
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
	"unsafe"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// plain is a schema that uses only what most do. It says a quick and certain yes while the data is read; everything else is left
// to the validator, which also finds the words. Its yes is held to the validator's by a fuzz test.
type plain struct {
	never bool // says yes
	types kinds

	properties map[string]*plain
	additional *plain // of what is not in properties; nil where anything may come
	required   []string
	least      [3]int // properties, items, characters
	most       [3]int // -1 for no limit

	items *plain
	texts map[string]bool // of an enum of texts
	above float64         // a number within both is within the limits, however those were rounded
	below float64
	limit bool
	floor bool // above is a limit that an integer may reach
	ceil  bool // and below
	match jsonschema.Regexp
	form  *jsonschema.Format
	all   []*plain // also what it refers to
	any   []*plain
}

// kinds is a set of types.
type kinds uint8

const (
	kindNull kinds = 1 << iota
	kindBoolean
	kindNumber
	kindInteger
	kindString
	kindArray
	kindObject
)

var kindNames = map[string]kinds{"null": kindNull, "boolean": kindBoolean, "number": kindNumber, "integer": kindInteger,
	"string": kindString, "array": kindArray, "object": kindObject}

// plainOf makes a plain schema of a compiled one.
func plainOf(s *jsonschema.Schema) *plain {
	done := map[*jsonschema.Schema]*plain{}
	p := simplify(s, done)
	visited := map[*plain]int{}
	for _, each := range done {
		each.uncircle(visited)
	}
	return p
}

// uncircle has no schema lead to itself over one and the same value, which would have no end.
func (p *plain) uncircle(visited map[*plain]int) {
	const underWay, finished = 1, 2
	if visited[p] == finished {
		return
	}
	visited[p] = underWay
	for _, next := range append(slices.Clip(p.all), p.any...) {
		if visited[next] == underWay {
			p.never = true
		} else {
			next.uncircle(visited)
		}
	}
	visited[p] = finished
}

// simplify makes one and what is within it; done holds those that were met, since schemas may be recursive.
func simplify(s *jsonschema.Schema, done map[*jsonschema.Schema]*plain) *plain {
	if s == nil {
		return nil
	}
	if p := done[s]; p != nil {
		return p
	}
	p := &plain{least: [3]int{}, most: [3]int{-1, -1, -1}}
	done[s] = p
	if s.Bool != nil {
		p.never = !*s.Bool
		return p
	}
	p.never = s.RecursiveRef != nil || s.DynamicRef != nil || s.Const != nil || s.Not != nil || s.OneOf != nil || s.If != nil ||
		s.PropertyNames != nil || s.PatternProperties != nil || s.Dependencies != nil || s.DependentRequired != nil ||
		s.DependentSchemas != nil || s.UnevaluatedProperties != nil || s.UniqueItems || s.Contains != nil || s.Items != nil ||
		s.AdditionalItems != nil || s.PrefixItems != nil || s.UnevaluatedItems != nil || s.ContentEncoding != nil ||
		s.ContentMediaType != nil || s.ContentSchema != nil || s.MultipleOf != nil || s.Extensions != nil
	if p.never {
		return p
	}
	if s.Types != nil {
		for _, name := range s.Types.ToStrings() {
			p.types |= kindNames[name]
		}
	}
	p.sizes(s)
	p.numbers(s)
	p.inner(s, done)
	if s.Enum != nil {
		p.texts = map[string]bool{}
		for _, v := range s.Enum.Values {
			if text, ok := v.(string); ok {
				p.texts[text] = true
			}
		}
	}
	p.match, p.form, p.required = s.Pattern, s.Format, slices.Compact(slices.Sorted(slices.Values(s.Required)))
	p.never = len(p.required) > 63
	return p
}

func (p *plain) sizes(s *jsonschema.Schema) {
	for i, limits := range [3][2]*int{{s.MinProperties, s.MaxProperties}, {s.MinItems, s.MaxItems}, {s.MinLength, s.MaxLength}} {
		if limits[0] != nil {
			p.least[i] = *limits[0]
		}
		if limits[1] != nil {
			p.most[i] = *limits[1]
		}
	}
}

// numbers takes the limits as floating-point numbers. Rounding keeps order, so what is strictly within the rounded
// limits is within the limits themselves; on the limit the validator decides, but for integers that nothing rounds.
func (p *plain) numbers(s *jsonschema.Schema) {
	const huge = 1e308
	p.above, p.below = -huge, huge
	for _, r := range []*big.Rat{s.Minimum, s.ExclusiveMinimum} {
		if r != nil {
			f, _ := r.Float64()
			p.above, p.limit = max(p.above, f), true
		}
	}
	for _, r := range []*big.Rat{s.Maximum, s.ExclusiveMaximum} {
		if r != nil {
			f, _ := r.Float64()
			p.below, p.limit = min(p.below, f), true
		}
	}
	reached := func(limit, beside *big.Rat, inner int) bool {
		if limit == nil || !limit.IsInt() || beside != nil && limit.Cmp(beside) != inner {
			return false
		}
		_, exact := limit.Float64()
		return exact
	}
	p.floor, p.ceil = reached(s.Minimum, s.ExclusiveMinimum, 1), reached(s.Maximum, s.ExclusiveMaximum, -1)
}

// exactMost is how many digits an integer may have that no float64 rounds.
const exactMost = 15

// inner takes the schemas within a schema.
func (p *plain) inner(s *jsonschema.Schema, done map[*jsonschema.Schema]*plain) {
	if s.Properties != nil {
		p.properties = make(map[string]*plain, len(s.Properties))
		for name, of := range s.Properties {
			p.properties[name] = simplify(of, done)
		}
	}
	switch of := s.AdditionalProperties.(type) {
	case bool:
		if !of {
			p.additional = &plain{never: true}
		}
	case *jsonschema.Schema:
		p.additional = simplify(of, done)
	}
	p.items = simplify(s.Items2020, done)
	for _, of := range s.AllOf {
		p.all = append(p.all, simplify(of, done))
	}
	if s.Ref != nil {
		p.all = append(p.all, simplify(s.Ref, done))
	}
	for _, of := range s.AnyOf {
		p.any = append(p.any, simplify(of, done))
	}
}

// takes says that data is JSON and surely keeps the schema; false says nothing. Nothing is made of the data but what has
// an escape in it.
func (p *plain) takes(data []byte) bool {
	if p.never {
		return false
	}
	r := readings.Get().(*reading)
	r.decoder = decoder{s: unsafe.String(unsafe.SliceData(data), len(data))} // nothing of it is kept
	defer r.end()
	r.space()
	if !p.value(r, 0) {
		return false
	}
	r.space()
	return r.at == len(r.s)
}

// reading is data on its way past a schema.
type reading struct {
	decoder
	names []string // of the objects that are open, so that none comes twice
}

// readings are those that are at their end: what is checked is checked all the time, and its names take room.
var readings = sync.Pool{New: func() any { return new(reading) }}

// end lets go of the data.
func (r *reading) end() {
	clear(r.names[:cap(r.names)])
	r.decoder, r.names = decoder{}, r.names[:0]
	readings.Put(r)
}

// namesMost is how many names of an object are held against each other; what has more goes the long way.
const namesMost = 32

// free takes everything.
var free = &plain{most: [3]int{-1, -1, -1}}

// value reads one value and says whether it surely keeps the schema. Where it does not, the reading is of no more use.
func (p *plain) value(r *reading, depth int) bool {
	if p.never || depth > depthMax {
		return false
	}
	began := r.at
	if !p.itself(r, depth) {
		return false
	}
	end := r.at
	for _, of := range p.all {
		if r.at = began; !of.value(r, depth) {
			return false
		}
	}
	if p.any == nil {
		return true
	}
	names := len(r.names)
	for _, of := range p.any {
		if r.at, r.names = began, r.names[:names]; of.value(r, depth) {
			return true
		}
	}
	r.at = end
	return false
}

// itself reads a value, without what all and any say of it.
func (p *plain) itself(r *reading, depth int) bool {
	switch c := r.next(); {
	case c == '{':
		return p.kind(kindObject) && p.texts == nil && p.form == nil && p.object(r, depth)
	case c == '[':
		return p.kind(kindArray) && p.texts == nil && p.form == nil && p.array(r, depth)
	case c == '"':
		text, err := r.text()
		return err == nil && p.kind(kindString) && p.text(text)
	case c == '-' || digit(c):
		n, err := r.number()
		return err == nil && p.texts == nil && p.form == nil && p.number(n)
	case r.word("null"):
		return p.kind(kindNull) && p.texts == nil && p.form == nil
	case r.word("true"), r.word("false"):
		return p.kind(kindBoolean) && p.texts == nil && p.form == nil
	}
	return false
}

func (p *plain) kind(k kinds) bool { return p.types == 0 || p.types&k != 0 }

func (p *plain) text(s string) bool {
	switch {
	case p.texts != nil && !p.texts[s], p.form != nil && p.form.Validate(s) != nil, p.match != nil && !p.match.MatchString(s):
		return false
	}
	return p.least[2] == 0 && p.most[2] < 0 || p.fits(2, utf8.RuneCountInString(s))
}

// number is of both types where it is surely an integer.
func (p *plain) number(s string) bool {
	whole := !strings.ContainsAny(s, ".eE")
	if !p.kind(kindNumber) && !(whole && p.kind(kindInteger)) {
		return false
	}
	if !p.limit {
		return true
	}
	f, err := strconv.ParseFloat(s, 64)
	exact := whole && len(s) <= exactMost
	return err == nil && (f > p.above || f == p.above && p.floor && exact) && (f < p.below || f == p.below && p.ceil && exact)
}

func (p *plain) object(r *reading, depth int) bool {
	first, there := len(r.names), uint64(0)
	r.at++
	r.space()
	if r.next() == '}' {
		r.at++
		return len(p.required) == 0 && p.fits(0, 0)
	}
	for {
		if r.next() != '"' {
			return false
		}
		name, err := r.text()
		if err != nil || len(r.names)-first == namesMost || slices.Contains(r.names[first:], name) {
			return false
		}
		r.names = append(r.names, name)
		if i := slices.Index(p.required, name); i >= 0 {
			there |= 1 << i
		}
		r.space()
		if r.next() != ':' {
			return false
		}
		r.at++
		r.space()
		of, known := p.properties[name]
		if !known {
			of = p.additional
		}
		if of == nil {
			of = free
		}
		if !of.value(r, depth+1) {
			return false
		}
		r.space()
		switch r.next() {
		case ',':
			r.at++
			r.space()
		case '}':
			r.at++
			n := len(r.names) - first
			r.names = r.names[:first]
			return p.fits(0, n) && there == 1<<len(p.required)-1
		default:
			return false
		}
	}
}

func (p *plain) array(r *reading, depth int) bool {
	of := p.items
	if of == nil {
		of = free
	}
	r.at++
	r.space()
	if r.next() == ']' {
		r.at++
		return p.fits(1, 0)
	}
	for n := 1; ; n++ {
		if !of.value(r, depth+1) {
			return false
		}
		r.space()
		switch r.next() {
		case ',':
			r.at++
			r.space()
		case ']':
			r.at++
			return p.fits(1, n)
		default:
			return false
		}
	}
}

func (p *plain) fits(i, n int) bool { return n >= p.least[i] && (p.most[i] < 0 || n <= p.most[i]) }
