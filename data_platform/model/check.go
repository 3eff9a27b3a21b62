package model

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

const (
	fieldsMax  = 1000
	rollupsMax = 20
	stepsMax   = 20
)

// telling says what is wrong with the setting at a path, such as `fields[2].type`.
type telling func(path, format string, args ...any)

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

// checkName says what is wrong with the name of a table or a column; empty when nothing is.
func checkName(name string) string {
	switch {
	case name == "":
		return "it is missing"
	case !nameForm.MatchString(name):
		return fmt.Sprintf("%q: want a small letter, then small letters, digits and _, 63 at most", name)
	case slices.Contains(reserved, name):
		return fmt.Sprintf("%q is a word of SQL; take another, such as %s_value", name, name)
	}
	return ""
}

func checkTable(name string) string {
	if text := checkName(name); text != "" {
		return text
	}
	for _, of := range []string{"naru_", "pg_", "duckdb_", "sqlite_"} {
		if strings.HasPrefix(name, of) {
			return fmt.Sprintf("%q: names that begin with %s are the database's own; take another", name, of)
		}
	}
	if name == "input" || name == "information_schema" {
		return fmt.Sprintf("%q is what a pipeline's steps read; take another", name)
	}
	return ""
}

// check finds what is wrong with a dataset by itself, and plans how its rows are made where nothing is.
func (d *Dataset) check(tell telling) {
	good := true
	told := tell
	tell = func(path, format string, args ...any) { good = false; told(path, format, args...) }
	if text := checkTable(d.Name); text != "" {
		tell("dataset", "%s", text)
	}
	if d.Version < 1 {
		tell("version", "want a number that counts up from 1 with each change")
	}
	if strings.TrimSpace(d.Owner) == "" {
		tell("owner", "is missing: who answers for it")
	}
	if strings.TrimSpace(d.Doc) == "" {
		tell("doc", "is missing: one sentence on what a row is")
	}
	for i, p := range d.From {
		at := fmt.Sprintf("from[%d]", i)
		if strings.ContainsAny(string(p), "/+#") {
			if f, err := message.FromFilter(string(p)); err == nil {
				tell(at, "%q is written as an MQTT filter; as subjects it is %s", p, f[len(f)-1])
				continue
			}
		}
		if err := p.Valid(); err != nil {
			tell(at, "%s", err)
			continue
		}
		switch first, _, more := strings.Cut(string(p), "."); {
		case more && (first == message.Device || first == message.ThirdParty):
		case first == message.ServicePlatform || first == message.DataPlatform || first == message.Operator:
			tell(at, "messages of %s do not land in a dataset by themselves; a rule's action data_bridge puts what is made of them there", first)
		default:
			tell(at, "begin it with device. or 3rd_party.; what has another first token comes into a dataset by a rule's action data_bridge")
		}
	}
	d.checkFields(d.Fields, "fields", tell)
	d.checkTime(tell)
	for i, k := range d.Key {
		at := fmt.Sprintf("key[%d]", i)
		switch c := d.Column(k); {
		case c == nil:
			tell(at, "%s", d.unknown(k))
		case c.Type == JSON:
			tell(at, "%s is json, and two of them cannot be compared; take a field of another type", k)
		case slices.Index(d.Key, k) != i:
			tell(at, "%s is there twice", k)
		}
	}
	for _, v := range []struct {
		name string
		d    Duration
	}{{"retention", d.Retention}, {"late", d.Late}} {
		if v.d != 0 && v.d.Std() < time.Second {
			tell(v.name, "%s is less than a second", v.d)
		}
	}
	d.checkRollups(tell)
	if good {
		d.plan = newPlan(d)
	}
}

func (d *Dataset) unknown(column string) error {
	names := []string{}
	for _, s := range System {
		names = append(names, s.Name)
	}
	for i := range d.Fields {
		names = append(names, d.Fields[i].Name)
	}
	err := component.UnknownKey(column, names)
	return fmt.Errorf("%s", strings.Replace(err.Error(), "there is no setting", "there is no column", 1))
}

func (d *Dataset) checkFields(fields []Field, at string, tell telling) {
	if len(fields) == 0 {
		tell(at, "are missing: at least one, such as {name: celsius, type: double}")
	}
	if len(fields) > fieldsMax {
		tell(at, "are %d; there may be %d", len(fields), fieldsMax)
		return
	}
	names, places, rest, raw := map[string]bool{}, map[string]string{}, "", ""
	for i := range fields {
		f := &fields[i]
		here := fmt.Sprintf("%s[%d]", at, i)
		if text := checkName(f.Name); text != "" {
			tell(here+".name", "%s", text)
		}
		if slices.ContainsFunc(System, func(s Field) bool { return s.Name == f.Name }) {
			tell(here+".name", "%s is a column that every dataset has; take another name, and say where it stands with `at: /%s`", f.Name, f.Name)
		}
		if names[f.Name] {
			tell(here+".name", "%s is there twice", f.Name)
		}
		names[f.Name] = true
		f.check(func(path, format string, args ...any) {
			tell(here+"."+path, strings.ReplaceAll(f.Name, "%", "%%")+": "+format, args...)
		})
		switch {
		case f.Rest && rest != "", f.Raw && raw != "":
			tell(here, "%s and %s both take what is left; one can", rest+raw, f.Name)
		case f.Rest:
			rest = f.Name
		case f.Raw:
			raw = f.Name
		default:
			p := f.pointer()
			if other, twice := places[p]; twice {
				tell(here+".at", "%s stands at %s, as %s does", f.Name, p, other)
			}
			places[p] = f.Name
		}
	}
	for p, name := range places {
		for q, other := range places {
			if strings.HasPrefix(p, q+"/") {
				tell(at, "%s at %s is inside of %s at %s; a value goes to one field", name, p, other, q)
			}
		}
	}
}

// check finds what is wrong with a field, beside its name.
func (f *Field) check(tell telling) {
	if !slices.Contains(types, f.Type) {
		var names []string
		for _, t := range types {
			names = append(names, string(t))
		}
		tell("type", "%q is no type; there are %s", f.Type, strings.Join(names, ", "))
		return
	}
	if f.At != "" {
		if _, err := pointer(f.At); err != nil {
			tell("at", "%s", err)
		}
	}
	switch {
	case f.Rest && f.Type != JSON:
		tell("rest", "what is left is json; the type is %s", f.Type)
	case f.Raw && f.Type != Bytes:
		tell("raw", "a payload is bytes; the type is %s", f.Type)
	case f.Rest && f.Raw:
		tell("raw", "it takes the rest already")
	case (f.Rest || f.Raw) && f.At != "":
		tell("at", "it has no place of its own, since it takes what is left")
	case (f.Rest || f.Raw) && f.Required:
		tell("required", "it takes what is left, and that may be nothing")
	}
	number := f.Type == Int || f.Type == Double
	if (f.Min != nil || f.Max != nil) && !number {
		tell("min", "min and max are for int and double; the type is %s", f.Type)
	}
	if f.Min != nil && f.Max != nil && *f.Min > *f.Max {
		tell("min", "%v is above max, %v", *f.Min, *f.Max)
	}
	for name, v := range map[string]*float64{"min": f.Min, "max": f.Max} {
		if v != nil && f.Type == Int && (*v != math.Trunc(*v) || math.Abs(*v) > 1<<53) {
			tell(name, "%v is no whole number up to 2^53, as an int's bound must be", *v)
		}
	}
	if f.Type != Text && (len(f.Enum) > 0 || f.Pattern != "") {
		tell("enum", "enum and pattern are for text; the type is %s", f.Type)
	}
	for i, v := range f.Enum {
		if slices.Index(f.Enum, v) != i {
			tell("enum", "%q is there twice", v)
		}
	}
	if f.Pattern != "" {
		if _, err := regexp.Compile(f.Pattern); err != nil {
			tell("pattern", "%s", err)
		}
	}
	if f.MaxLength != 0 && f.Type != Text && f.Type != Bytes {
		tell("max_length", "it is for text and bytes; the type is %s", f.Type)
	}
	if f.MaxLength < 0 {
		tell("max_length", "%d is below zero", f.MaxLength)
	}
}

func (d *Dataset) checkTime(tell telling) {
	switch {
	case d.Time == "":
	case strings.HasPrefix(d.Time, "/"):
		if _, err := pointer(d.Time); err != nil {
			tell("time", "%s", err)
		}
		for i := range d.Fields {
			f := &d.Fields[i]
			if p := f.pointer(); !f.Rest && !f.Raw && (p == d.Time || strings.HasPrefix(p, d.Time+"/") || strings.HasPrefix(d.Time, p+"/")) {
				tell("time", "%s is where field %s stands; write `time: %s`, if that is a time", d.Time, f.Name, f.Name)
			}
		}
	default:
		switch f := d.Field(d.Time); {
		case f == nil:
			tell("time", "there is no field %q; name one, or where it stands: /%s", d.Time, d.Time)
		case f.Type != Time:
			tell("time", "field %s is %s; it must be a time", f.Name, f.Type)
		}
	}
}

func (d *Dataset) checkRollups(tell telling) {
	if len(d.Rollups) > rollupsMax {
		tell("rollups", "are %d; there may be %d", len(d.Rollups), rollupsMax)
	}
	for i := range d.Rollups {
		r := &d.Rollups[i]
		here := fmt.Sprintf("rollups[%d]", i)
		if text := checkTable(r.Name); text != "" {
			tell(here+".name", "%s", text)
		}
		if r.Name == d.Name || slices.IndexFunc(d.Rollups, func(o Rollup) bool { return o.Name == r.Name }) != i {
			tell(here+".name", "there is a table %s already", r.Name)
		}
		if day := 24 * time.Hour; r.Every.Std() < time.Second || r.Every.Std() > day || day%r.Every.Std() != 0 {
			tell(here+".every", "%s: want from 1s to 1d, and what a day is a multiple of", r.Every)
		}
		if most := r.Every.Std() + timeAhead; d.Retention > 0 && d.Retention.Std() <= most {
			tell(here+".every", "%s, and rows are kept for %s: a window is computed from its rows, so keep them for longer than %s", r.Every, d.Retention, Duration(most))
		}
		for j, by := range r.By {
			at := fmt.Sprintf("%s.by[%d]", here, j)
			c := d.Column(by)
			switch {
			case c == nil:
				tell(at, "%s", d.unknown(by))
			case by != "device" && by != "subject" && d.Field(by) == nil:
				tell(at, "%s is different for each row", by)
			case c.Type != Text && c.Type != Int && c.Type != Bool:
				tell(at, "%s is %s; rows are told apart by text, int and bool", by, c.Type)
			case slices.Index(r.By, by) != j:
				tell(at, "%s is there twice", by)
			case slices.Contains(r.made(), by):
				tell(at, "%s is what a column of the roll-up is called; give the field another name", by)
			}
		}
		if len(r.Values) == 0 {
			tell(here+".values", "are missing: such as {celsius: [avg, max]}")
		}
		for _, name := range slices.Sorted(maps.Keys(r.Values)) {
			at := here + ".values." + name
			f := d.Field(name)
			if f == nil {
				tell(at, "%s", d.unknown(name))
				continue
			}
			for k, function := range r.Values[name] {
				switch {
				case !slices.Contains(Functions, function):
					tell(at, "%q is nothing that is computed; there are %s", function, strings.Join(Functions, ", "))
				case function != "count" && f.Type != Int && f.Type != Double:
					tell(at, "%s of %s, which is %s; only count is computed of what is no number", function, name, f.Type)
				case slices.Index(r.Values[name], function) != k:
					tell(at, "%s is there twice", function)
				}
			}
			if len(r.Values[name]) == 0 {
				tell(at, "what is computed of %s is missing: such as [avg, max]", name)
			}
		}
	}
}

// made are the names of the columns that a roll-up has beside those that it is by.
func (r *Rollup) made() []string {
	list := []string{"time", "rows"}
	for field, functions := range r.Values {
		for _, f := range functions {
			list = append(list, field+"_"+f)
		}
	}
	return list
}

// check finds what is wrong with a pipeline by itself.
func (p *Pipeline) check(tell telling) {
	if text := checkTable(p.Name); text != "" {
		tell("pipeline", "%s", text)
	}
	if text := checkTable(p.Dataset); text != "" {
		tell("dataset", "%s", text)
	}
	if len(p.Steps) > stepsMax {
		tell("steps", "are %d; there may be %d", len(p.Steps), stepsMax)
	}
	if len(p.Steps) == 0 {
		tell("steps", "are missing: at least one, such as {sql: SELECT * FROM input}")
	}
	for i, s := range p.Steps {
		if strings.TrimSpace(s.SQL) == "" {
			tell(fmt.Sprintf("steps[%d].sql", i), "is missing: a SELECT over the table input")
		}
	}
	if len(p.Input) > 0 {
		(&Dataset{Name: p.Name}).checkFields(p.Input, "input", tell)
	}
	if p.Enrich != nil {
		names := map[string]bool{}
		for i, t := range p.Enrich.Twin {
			at := fmt.Sprintf("enrich.twin[%d]", i)
			tokens, err := pointer(t)
			if err != nil {
				tell(at, "%s", err)
				continue
			}
			if text := checkTwin(tokens); text != "" {
				tell(at, "%s", text)
			}
			name := twinColumn(t)
			if p.reads(name) {
				tell(at, "column %s is a field of input already", name)
			}
			if text := checkName(name); text != "" {
				tell(at, "the column's name: %s", text)
			}
			if names[name] {
				tell(at, "column %s is there twice", name)
			}
			names[name] = true
		}
	}
}

// reads says whether an input of the pipeline's own has a field.
func (p *Pipeline) reads(name string) bool {
	return slices.ContainsFunc(p.Input, func(f Field) bool { return f.Name == name })
}

// Reads is what a pipeline's first step reads, as a dataset that Row can be asked of: the pipeline's Input, or the fields
// of d without what is required and bounded. Without a pipeline (nil) it is d itself.
func (p *Pipeline) Reads(d *Dataset) *Dataset {
	if p == nil {
		return d
	}
	c := d.clone()
	c.Rollups, c.Key = nil, nil
	if len(p.Input) > 0 {
		c.Fields = slices.Clone(p.Input)
		if f := c.Field(c.Time); !strings.HasPrefix(c.Time, "/") && (f == nil || f.Type != Time) {
			c.Time = ""
		} else if strings.HasPrefix(c.Time, "/") && slices.ContainsFunc(c.Fields, func(f Field) bool { return f.pointer() == c.Time }) {
			c.Time = ""
		}
	} else {
		if p.Enrich != nil { // what a twin gives is not read from a payload
			own := p.Enrich.Columns()
			c.Fields = slices.DeleteFunc(c.Fields, func(f Field) bool { return slices.Contains(own, f.Name) })
		}
		for i := range c.Fields {
			f := &c.Fields[i]
			*f = Field{Name: f.Name, Type: f.Type, At: f.At, Unit: f.Unit, Doc: f.Doc, Rest: f.Rest, Raw: f.Raw}
		}
	}
	c.plan = newPlan(c)
	return c
}

// pointer reads a JSON pointer (RFC 6901) of at least one token.
func pointer(s string) ([]string, error) {
	if !strings.HasPrefix(s, "/") {
		return nil, fmt.Errorf("%q is no JSON pointer; it begins with /, such as /engine/celsius", s)
	}
	tokens := strings.Split(s[1:], "/")
	if len(tokens) > nestingMax {
		return nil, fmt.Errorf("%q has %d tokens; it may have %d", s, len(tokens), nestingMax)
	}
	for i, t := range tokens {
		for j := strings.IndexByte(t, '~'); j >= 0; {
			if j+1 == len(t) || t[j+1] != '0' && t[j+1] != '1' {
				return nil, fmt.Errorf("%q: behind ~ comes 0 (for ~) or 1 (for /)", s)
			}
			k := strings.IndexByte(t[j+1:], '~')
			if k < 0 {
				break
			}
			j += 1 + k
		}
		tokens[i] = strings.ReplaceAll(strings.ReplaceAll(t, "~1", "/"), "~0", "~")
	}
	return tokens, nil
}

// pointer is where the field stands in a payload.
func (f *Field) pointer() string {
	if f.At != "" {
		return f.At
	}
	return "/" + f.Name
}

// reserved are the words that PostgreSQL or DuckDB take for something else where a name may stand.
var reserved = strings.Fields(`all analyse analyze anti any array as asc asof asymmetric at authorization binary both case cast check collate
collation column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
current_timestamp current_user default deferrable desc describe distinct do else end except exclude excluded false fetch filter for foreign freeze
from full generated glob grant group grouping having ilike in initially inner intersect interval into is isnull join lambda lateral leading left like
limit localtime localtimestamp map natural not notnull null offset on only or order outer overlaps pivot pivot_longer pivot_wider
placing positional primary qualify references returning right rowid select semi session_user set show similar some struct summarize
symmetric system_user table tablesample then to trailing true try_cast union unique unpack unpivot user using values variadic verbose when where
window with ctid xmin xmax cmin cmax tableoid`)
