// Package model says what the rows of a dataset are: documents in YAML, checked as a whole, from which a message becomes
// the typed values of one row, and a Book in which all processes of a platform find the documents in force.
//
// It is a library of the data platform's components; it opens nothing but the table that a Book follows.
package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
)

// Type is what a column holds.
type Type string

// The types, and what a value of each is in Go: bool, int64, float64, string (text and json), time.Time in UTC, []byte.
// A value that is not there is nil.
const (
	Bool   Type = "bool"
	Int    Type = "int" // 64 bits, signed
	Double Type = "double"
	Text   Type = "text"
	Time   Type = "time"  // to the microsecond, UTC
	JSON   Type = "json"  // any JSON, as its text
	Bytes  Type = "bytes" // base64 in JSON
)

var types = []Type{Bool, Int, Double, Text, Time, JSON, Bytes}

// Field is a column of a dataset.
type Field struct {
	Name string `json:"name"`
	Type Type   `json:"type"`
	Unit string `json:"unit,omitempty"` // of the values, for people: °C, bar
	Doc  string `json:"doc,omitempty"`
	// At is where the value stands in the payload, a JSON pointer (RFC 6901); `/<name>` where it is empty.
	At       string `json:"at,omitempty"`
	Required bool   `json:"required,omitempty"`
	// Min and Max bound an int or a double, themselves included.
	Min *float64 `json:"min,omitempty"`
	Max *float64 `json:"max,omitempty"`
	// Enum lists all values that a text may have.
	Enum []string `json:"enum,omitempty"`
	// Pattern is a regular expression (RE2) that a text matches somewhere; write ^ and $ for the whole of it.
	Pattern string `json:"pattern,omitempty"`
	// MaxLength is how many characters a text, or bytes a bytes, may have; zero for any number.
	MaxLength int `json:"max_length,omitempty"`
	// Rest says that the field, a json, takes what no other takes.
	Rest bool `json:"rest,omitempty"`
	// Raw says that the field, a bytes, takes the whole payload where that is no JSON object.
	Raw bool `json:"raw,omitempty"`
}

// Dataset is a table and what belongs into it.
type Dataset struct {
	Name    string `json:"dataset"`
	Version int    `json:"version"`
	Owner   string `json:"owner"`
	Doc     string `json:"doc"`
	// From selects the messages of other namespaces that land here unchanged; what rules send comes beside.
	From []message.Pattern `json:"from,omitempty"`
	// Time is what the row's time is read from: a field's name, or a JSON pointer where it needs no column of its own. Where
	// it is not there, or not plausible, the time is the message's.
	Time string `json:"time,omitempty"`
	// Key lists the columns that make two rows the same: fields, or system columns. The first one counts.
	Key    []string `json:"key,omitempty"`
	Fields []Field  `json:"fields"`
	// Retention is how long a row is kept from when the platform accepted its message; zero for ever.
	Retention Duration `json:"retention,omitempty"`
	// Late is how long roll-ups take in what comes behind its time; zero for any time. See TakesLate.
	Late    Duration `json:"late,omitempty"`
	Rollups []Rollup `json:"rollups,omitempty"`

	plan *plan // how rows are made; there once the dataset was checked
}

// Rollup is a table of aggregates over windows of time.
type Rollup struct {
	Name  string   `json:"name"` // of its table
	Every Duration `json:"every"`
	// By lists the columns by which rows are told apart within a window: device, subject, or fields of type text, int or bool.
	By []string `json:"by,omitempty"`
	// Values lists, by field, what is computed of it: avg, min, max, sum, count.
	Values map[string][]string `json:"values"`
}

// Functions are what a roll-up computes.
var Functions = []string{"avg", "min", "max", "sum", "count"}

// System lists the columns that every dataset has before its fields. Device is null where a message has none.
var System = []Field{
	{Name: "time", Type: Time, Required: true, Doc: "when it happened"},
	{Name: "device", Type: Text, Doc: "the device it is from or about"},
	{Name: "subject", Type: Text, Required: true, Doc: "of the message, behind the dataset's name"},
	{Name: "trace_id", Type: Text, Required: true, Doc: "32 hexadecimal digits"},
	{Name: "message_id", Type: Text, Required: true, Doc: "a UUID of version 7"},
	{Name: "recorded", Type: Time, Required: true, Doc: "when the platform accepted the message that became the row"},
}

// TakesLate is for how long roll-ups take in what comes behind its time; zero for any time. It is less than Late where the
// other rows of its window would be gone by then, since a window is computed from the rows there are.
func (d *Dataset) TakesLate() time.Duration {
	late := d.Late.Std()
	for _, r := range d.Rollups {
		if d.Retention == 0 {
			break
		}
		if most := d.Retention.Std() - r.Every.Std() - timeAhead; late == 0 || late > most {
			late = max(most, time.Second)
		}
	}
	return late
}

// Field is the field of that name; nil where there is none.
func (d *Dataset) Field(name string) *Field {
	for i := range d.Fields {
		if d.Fields[i].Name == name {
			return &d.Fields[i]
		}
	}
	return nil
}

// Column is a dataset's column of that name, a system one or a field; nil where there is none.
func (d *Dataset) Column(name string) *Field {
	for i := range System {
		if System[i].Name == name {
			return &System[i]
		}
	}
	return d.Field(name)
}

// Subjects is where the dataset's messages are said: `data_platform.<name>.>`.
func (d *Dataset) Subjects() message.Pattern {
	return message.Pattern(message.DataPlatform + "." + d.Name + ".>")
}

// Subject is where a message of a device is said for the dataset; `-` stands for no device.
func (d *Dataset) Subject(device string) message.Subject {
	if device == "" {
		device = "-"
	}
	return message.NewSubject(message.DataPlatform, d.Name, device)
}

// SubjectOf is where a message is said again for the dataset: `data_platform.<name>.<device>`, and behind that what tells
// where it was said: the rest of a device's subject, the whole of another one, nothing of what a rule put there.
func (d *Dataset) SubjectOf(m *message.Message) message.Subject {
	to := d.Subject(m.Device)
	if strings.HasPrefix(string(m.Subject), message.ServicePlatform+".") {
		return to
	}
	if own := string(message.NewSubject(message.Device, m.Device)) + "."; m.Device != "" && strings.HasPrefix(string(m.Subject), own) {
		return to + "." + m.Subject[len(own):]
	}
	return to + "." + m.Subject
}

// Pipeline is what is done with a dataset's rows before they are stored.
type Pipeline struct {
	Name    string `json:"pipeline"`
	Dataset string `json:"dataset"`
	Doc     string `json:"doc,omitempty"`
	// Input is what the first step reads from a payload. Where it is empty, that is the dataset's fields, with their types, but
	// none required or bounded: the model holds for what comes out.
	Input []Field `json:"input,omitempty"`
	// Steps are done one after the other. The last one's columns are the dataset's: one that is missing is null, one that the
	// dataset does not have is an error of the pipeline.
	Steps  []Step  `json:"steps"`
	Enrich *Enrich `json:"enrich,omitempty"`
}

// Step is one SELECT over the table `input`, the rows of a micro-batch as the step before left them.
type Step struct {
	SQL string `json:"sql"`
	Doc string `json:"doc,omitempty"`
}

// Enrich gives the first step columns from elsewhere.
type Enrich struct {
	// Twin lists JSON pointers into the device's unnamed twin, such as /reported/site: below reported and desired into its
	// state, else into metadata, version and timestamp. The column is named by the last token, with `twin_` before it, and is
	// a json; null where the twin, or the value, is not there.
	Twin []string `json:"twin,omitempty"`
}

// Document is one of a file: exactly one of Dataset and Pipeline is there.
type Document struct {
	File string // as it was given to Parse
	Line int    // where it begins, from 1
	Text string // as it is in the file
	// Both were checked.
	Dataset  *Dataset
	Pipeline *Pipeline
}

// Name is the dataset's or the pipeline's.
func (d *Document) Name() string {
	if d.Pipeline != nil {
		return d.Pipeline.Name
	}
	return d.Dataset.Name
}

// Kind is `dataset` or `pipeline`.
func (d *Document) Kind() string {
	if d.Pipeline != nil {
		return KindPipeline
	}
	return KindDataset
}

// The kinds of documents.
const (
	KindDataset  = "dataset"
	KindPipeline = "pipeline"
)

// Duration is a time.Duration that is written as people do: 90s, 15m, 1h, 30d, 2w.
type Duration time.Duration

// ParseDuration reads one, days (d) and weeks (w) among its units. It is not negative.
func ParseDuration(s string) (Duration, error) {
	wrong := fmt.Errorf("%q is no duration; write it as 90s, 15m, 1h or 30d", s)
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			n, err := strconv.ParseUint(number, 10, 16)
			if err != nil || time.Duration(n) > 100*366*24*time.Hour/unit {
				return 0, wrong
			}
			return Duration(time.Duration(n) * unit), nil
		}
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return 0, wrong
	}
	return Duration(v), nil
}

// Std is the duration as Go has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes it with the largest unit that has no fraction.
func (d Duration) String() string {
	for _, u := range []struct {
		name string
		of   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if d != 0 && time.Duration(d)%u.of == 0 {
			return strconv.FormatInt(int64(time.Duration(d)/u.of), 10) + u.name
		}
	}
	return time.Duration(d).String()
}

// MarshalJSON writes what String gives.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads what ParseDuration does.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		return errors.New("want a duration in quotes: 90s, 15m, 1h or 30d")
	}
	v, err := ParseDuration(s)
	*d = v
	return err
}

// clone is a copy that shares nothing that anybody changes.
func (d *Dataset) clone() *Dataset {
	c := *d
	c.Fields = slices.Clone(d.Fields)
	return &c
}
