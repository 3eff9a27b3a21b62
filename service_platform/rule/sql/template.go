package sql

import (
	"fmt"
	"slices"
	"strings"
)

// Template is a text with ${expression} in it, compiled. Its expressions see the message's payload, never the output of
// SELECT, and the variables of the statement that it was compiled for.
type Template struct {
	program
	parts []templatePart
	of    []assignment // the statement's variables, for identity
}

type templatePart struct {
	text string
	of   expr // nil: text
}

// CompileTemplate reads a template that stands for itself. Errors are *Error.
func CompileTemplate(text string) (*Template, error) { return compileTemplate(text, nil) }

// Template reads a template that may use the variables of the statement's SET. Errors are *Error.
func (s *Statement) Template(text string) (*Template, error) {
	return compileTemplate(text, &s.program)
}

func compileTemplate(text string, of *program) (*Template, error) {
	p, err := newParser(text, of)
	if err != nil {
		return nil, err
	}
	t := &Template{}
	if of != nil {
		t.of = of.variables
	}
	if err := p.parse(func() { p.template(t) }); err != nil {
		return nil, err
	}
	t.program = p.program
	return t, nil
}

func (p *parser) template(t *Template) {
	for at, n := 0, 0; at < len(p.text); {
		before, _, found := strings.Cut(p.text[at:], "${")
		if before != "" {
			t.parts = append(t.parts, templatePart{text: before})
		}
		if !found {
			return
		}
		if n++; n > templatesMax {
			p.failAt(at+len(before), fmt.Sprintf("at most %d expressions", templatesMax), "more", "")
		}
		p.lex.at = at + len(before) + len("${")
		p.advance()
		t.parts = append(t.parts, templatePart{of: p.expression()})
		if !p.tok.is("}") {
			p.want("an operator or }")
		}
		at = p.tok.to
	}
}

// String gives the template as it was written.
func (t *Template) String() string { return t.text }

// Constant says whether the template has no expressions.
func (t *Template) Constant() bool {
	return !slices.ContainsFunc(t.parts, func(p templatePart) bool { return p.of != nil })
}

// Looks says whether the template asks the Lookup for something.
func (t *Template) Looks() bool { return t.looks }

// Extensions names what the template uses that AWS IoT does not document.
func (t *Template) Extensions() []string { return slices.Clone(t.extensions) }

// Eval puts the values in. defined is false if one of them is Undefined; it then stands as an empty text. variables are those
// that Statement.Eval gave for the same message; with nil, the template evaluates those it needs anew.
func (t *Template) Eval(in *Input, variables *Variables) (text string, defined bool, err error) {
	e := newEnv(&t.program, in)
	defer e.release()
	if variables != nil && len(t.of) > 0 && len(variables.of) == len(t.of) && &variables.of[0] == &t.of[0] {
		e.values = append(e.values, variables.values...)
		for range e.values {
			e.set = append(e.set, true)
		}
	}
	defined = true
	out := e.out[:0]
	for _, part := range t.parts {
		if part.of == nil {
			out = append(out, part.text...)
			continue
		}
		switch v := e.eval(part.of); v.kind {
		case Undefined:
			defined = false
		case String, binary:
			out = append(out, v.b...)
		default:
			out = e.appendJSON(out, v)
		}
		if len(out) > outputMax {
			e.fail(errTooLarge)
		}
	}
	e.out = out
	if e.err != nil {
		return "", false, e.err
	}
	return string(out), defined, nil
}
