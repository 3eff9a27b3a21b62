// Package schema compiles JSON Schemas (2020-12) and checks data against them. What it says of data that does not keep a
// schema is one sentence for a person: where, what was found, what was wanted.
//
// It is made for a door: whatever comes in costs time and memory in proportion to its size, and nothing is ever loaded
// from a file or the network. A `format` that is known is asserted, since who writes one down means it.
package schema

import (
	"errors"
	"fmt"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Dialect is the one that is spoken: the `$schema` of every schema, and what one without it is taken for.
const Dialect = "https://json-schema.org/draft/2020-12/schema"

// base is where a schema is said to lie, so that a relative reference in it becomes an absolute one that nobody loads.
const base = "naru:///"

// Schema is a compiled schema. A nil Schema takes everything, also what is not JSON. It does not change; any number of
// goroutines may check with it.
type Schema struct {
	compiled *jsonschema.Schema
	plain    *plain
}

// Compile reads a schema. What it refers to must be inside itself (`$defs`), or be the dialect's own metaschema. The
// error names the place in the schema.
func Compile(raw []byte) (*Schema, error) {
	doc, err := decode(raw)
	if err != nil {
		return nil, err
	}
	if err := spoken(doc); err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(closed{})
	if err := c.AddResource(base, doc); err != nil {
		return nil, err
	}
	compiled, err := c.Compile(base)
	if err != nil {
		return nil, explain(err, doc)
	}
	return &Schema{compiled, plainOf(compiled)}, nil
}

// spoken says whether a document is a schema of the dialect at all.
func spoken(doc any) error {
	switch v := doc.(type) {
	case bool:
		return nil
	case map[string]any:
		d, there := v["$schema"]
		if s, _ := d.(string); there && strings.TrimSuffix(s, "#") != Dialect {
			return fmt.Errorf("/$schema: got %s, want %q", show(d), Dialect)
		}
		return nil
	}
	return fmt.Errorf("%s: got %s, want an object, true or false", whole, typeName(doc))
}

// closed loads nothing.
type closed struct{}

// Load refuses by name.
func (closed) Load(url string) (any, error) {
	return nil, errors.New("nothing is loaded from elsewhere")
}

// explain makes one line of what the compiler says.
func explain(err error, doc any) error {
	var load *jsonschema.LoadURLError
	var bad *jsonschema.SchemaValidationError
	var broken *jsonschema.ValidationError
	var regex *jsonschema.InvalidRegexError
	switch {
	case errors.As(err, &load):
		return fmt.Errorf("it refers to %s, and nothing is loaded from elsewhere: put that under $defs and refer to it there",
			quote(strings.TrimPrefix(load.URL, base)))
	case errors.As(err, &bad) && errors.As(bad.Err, &broken):
		return errors.New(sentence(broken, doc))
	case errors.As(err, &regex):
		_, at, _ := strings.Cut(regex.URL, "#")
		return fmt.Errorf("%s: got %s, which is no regular expression (RE2): %w", clip(at, pointerMax), quote(regex.Regex), regex.Err)
	}
	return errors.New(clip(strings.ReplaceAll(err.Error(), base, ""), sentenceMax))
}

// Check says in one sentence what is wrong with the data: `/celsius: got string, want number`. Of several faults it
// names the one whose pointer (RFC 6901) sorts first. What is not JSON is told with the offset of the byte, counted from
// zero; a name that occurs twice in an object is not JSON here, since readers would not agree on what it means.
func (s *Schema) Check(data []byte) (err error) {
	if s == nil {
		return nil
	}
	// The validator is not ours and the data is a stranger's: a fault of the one must not take the process down.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the data cannot be checked: %s", clip(fmt.Sprint(p), sentenceMax))
		}
	}()
	if s.plain.takes(data) {
		return nil
	}
	doc, err := decode(data)
	if err != nil {
		return err
	}
	err = s.compiled.Validate(doc)
	var broken *jsonschema.ValidationError
	if errors.As(err, &broken) {
		return errors.New(sentence(broken, doc))
	}
	return err
}
