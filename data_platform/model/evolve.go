package model

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Evolve says whether a dataset may become another of its name while there are rows: nil, or an error that names each step
// that is refused, why, and what to do instead. What is fine: a field more that is not required, int to double, bounds that
// let in more, a field that is not required any more, other texts, sources, retention, roll-ups.
func Evolve(old, next *Dataset) error {
	var errs []error
	refuse := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("dataset %s, version %d to %d: "+format, append([]any{old.Name, old.Version, next.Version}, args...)...))
	}
	another := fmt.Sprintf("; take it as a new dataset, such as %s_v%d, and let both be filled while readers go over", old.Name, next.Version)
	if old.Name != next.Name {
		return fmt.Errorf("dataset %s cannot become %s: a dataset has one name%s", old.Name, next.Name, another)
	}
	if next.Version <= old.Version {
		refuse("the version counts up: make it %d", old.Version+1)
	}
	if old.Time != next.Time {
		refuse("time is %s and would be %s: rows that are there have been put in order by it%s", orNone(old.Time), orNone(next.Time), another)
	}
	if !slices.Equal(old.Key, next.Key) {
		refuse("key is [%s] and would be [%s]: which rows were the same has been decided by it%s", strings.Join(old.Key, ", "), strings.Join(next.Key, ", "), another)
	}
	for i := range old.Fields {
		f := &old.Fields[i]
		g := next.Field(f.Name)
		if g == nil {
			refuse("field %s would be gone, with the values it has; leave it, it may stay empty", f.Name)
			continue
		}
		if f.Type != g.Type && !(f.Type == Int && g.Type == Double) {
			refuse("field %s is %s and would be %s: not each value that is there fits; add a field of another name", f.Name, f.Type, g.Type)
			continue
		}
		if f.Unit != g.Unit && f.Unit != "" {
			refuse("field %s is in %s and would be in %s: the values that are there would mean something else; add a field of another name", f.Name, f.Unit, orNone(g.Unit))
		}
		if f.Rest != g.Rest || f.Raw != g.Raw {
			refuse("field %s takes other things than it did; add a field of another name", f.Name)
		}
		if g.Required && !f.Required {
			refuse("field %s would be required, and there may be rows without it; leave it optional, or%s", f.Name, another[1:])
		}
		narrower(f, g, refuse)
	}
	for i := range next.Fields {
		if g := &next.Fields[i]; old.Field(g.Name) == nil && g.Required {
			refuse("field %s is new and would be required, and the rows that are there do not have it; make it optional", g.Name)
		}
	}
	for i := range old.Rollups {
		r := &old.Rollups[i]
		j := slices.IndexFunc(next.Rollups, func(o Rollup) bool { return o.Name == r.Name })
		if j < 0 {
			continue // its table goes, and can be computed again
		}
		if s := &next.Rollups[j]; r.Every != s.Every || !slices.Equal(r.By, s.By) || !sameValues(r.Values, s.Values) {
			refuse("roll-up %s would have other windows or columns than its table; give it another name", r.Name)
		}
	}
	return errors.Join(errs...)
}

func narrower(f, g *Field, refuse func(format string, args ...any)) {
	least := func(v *float64, none float64) float64 {
		if v == nil {
			return none
		}
		return *v
	}
	if least(g.Min, math.Inf(-1)) > least(f.Min, math.Inf(-1)) {
		refuse("field %s would begin at %v, and there may be rows below; leave min as it was", f.Name, *g.Min)
	}
	if least(g.Max, math.Inf(1)) < least(f.Max, math.Inf(1)) {
		refuse("field %s would end at %v, and there may be rows above; leave max as it was", f.Name, *g.Max)
	}
	if g.MaxLength != 0 && (f.MaxLength == 0 || g.MaxLength < f.MaxLength) {
		refuse("field %s would have %d at most, and there may be longer ones; leave max_length as it was", f.Name, g.MaxLength)
	}
	if len(g.Enum) > 0 {
		for _, v := range f.Enum {
			if !slices.Contains(g.Enum, v) {
				refuse("field %s would not be %q any more, and there may be rows where it is; leave it in enum", f.Name, v)
			}
		}
		if len(f.Enum) == 0 {
			refuse("field %s would be one of a list, and there may be rows with other values; leave enum out", f.Name)
		}
	}
	if g.Pattern != "" && g.Pattern != f.Pattern {
		refuse("field %s would match %s, and there may be rows that do not; leave pattern as it was, or out", f.Name, g.Pattern)
	}
}

func sameValues(a, b map[string][]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if !slices.Equal(v, b[k]) {
			return false
		}
	}
	return true
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
