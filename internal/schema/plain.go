package schema

import (
	"encoding/json"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// plain is a schema that uses only what most do. It says a quick and certain yes; everything else is left to the
// validator, which also finds the words. Its yes is held to the validator's by a fuzz test.
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
	p.match, p.form, p.required = s.Pattern, s.Format, s.Required
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
// limits is within the limits themselves; on the limit the validator decides.
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
}

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

// takes says that a value surely keeps the schema. false says nothing.
func (p *plain) takes(v any) bool {
	if p.never || p.texts != nil && !p.oneOfTexts(v) || p.form != nil && p.form.Validate(v) != nil {
		return false
	}
	if p.types != 0 && p.types&kindOf(v) == 0 {
		return false
	}
	switch v := v.(type) {
	case map[string]any:
		if !p.object(v) {
			return false
		}
	case []any:
		if !p.fits(1, len(v)) {
			return false
		}
		if p.items != nil {
			for _, item := range v {
				if !p.items.takes(item) {
					return false
				}
			}
		}
	case string:
		if (p.least[2] > 0 || p.most[2] >= 0) && !p.fits(2, utf8.RuneCountInString(v)) || p.match != nil && !p.match.MatchString(v) {
			return false
		}
	case json.Number:
		if p.limit {
			f, err := strconv.ParseFloat(string(v), 64)
			if err != nil || f <= p.above || f >= p.below {
				return false
			}
		}
	}
	for _, of := range p.all {
		if !of.takes(v) {
			return false
		}
	}
	for _, of := range p.any {
		if of.takes(v) {
			return true
		}
	}
	return p.any == nil
}

func (p *plain) object(m map[string]any) bool {
	if !p.fits(0, len(m)) {
		return false
	}
	for _, name := range p.required {
		if _, there := m[name]; !there {
			return false
		}
	}
	if p.properties == nil && p.additional == nil {
		return true
	}
	for name, v := range m {
		of, known := p.properties[name]
		if !known {
			of = p.additional
		}
		if of != nil && !of.takes(v) {
			return false
		}
	}
	return true
}

func (p *plain) fits(i, n int) bool { return n >= p.least[i] && (p.most[i] < 0 || n <= p.most[i]) }

func (p *plain) oneOfTexts(v any) bool {
	s, ok := v.(string)
	return ok && p.texts[s]
}

// kindOf is a value's type, a number's both types where it is surely an integer.
func kindOf(v any) kinds {
	switch v := v.(type) {
	case nil:
		return kindNull
	case bool:
		return kindBoolean
	case json.Number:
		if strings.ContainsAny(string(v), ".eE") {
			return kindNumber
		}
		return kindNumber | kindInteger
	case string:
		return kindString
	case []any:
		return kindArray
	}
	return kindObject
}
