package sql

import (
	"fmt"
	"slices"
)

// Version is the version of the dialect that this package speaks.
const Version = "2016-03-23"

// Statement is a rule's statement, compiled: what to take of which messages.
type Statement struct {
	program
	selection
	filter string
	where  expr  // nil: every message
	at     place // of the SELECT list
	reads  bool  // the SELECT list takes something from the payload as JSON
}

// Compile reads one rule's statement of up to 64 KiB. Errors are *Error.
func Compile(statement string) (*Statement, error) {
	p, err := newParser(statement, nil)
	if err != nil {
		return nil, err
	}
	s := &Statement{}
	if err := p.parse(func() { p.statement(s) }); err != nil {
		return nil, err
	}
	s.program = p.program
	for _, one := range s.items {
		s.reads = s.reads || one.of != nil && s.readsPayload(one.of)
	}
	return s, nil
}

func newParser(text string, of *program) (*parser, error) {
	if len(text) > statementMax {
		return nil, fault(text, statementMax, fmt.Sprintf("a text of at most %d bytes", statementMax), fmt.Sprintf("%d bytes", len(text)), "")
	}
	p := &parser{program: program{text: text}, lex: lexer{text: text}}
	if of != nil {
		p.keys, p.variables = slices.Clone(of.keys), slices.Clone(of.variables)
	}
	return p, nil
}

// String gives the statement as it was written.
func (s *Statement) String() string { return s.text }

// Filter gives the topic filter of FROM as it was written, or "" where the statement has no FROM.
func (s *Statement) Filter() string { return s.filter }

// Extensions names what the statement uses that AWS IoT does not document; such a statement may not be portable.
func (s *Statement) Extensions() []string { return slices.Clone(s.extensions) }

// Warnings names what can be no intention, such as calls with a wrong number of arguments, which are always Undefined.
func (s *Statement) Warnings() []string { return slices.Clone(s.warnings) }

// Looks says whether the statement asks the Lookup for something: whether it has get_thing_shadow().
func (s *Statement) Looks() bool { return s.looks }

// MayHave says whether what the statement puts out can be an object with that member: where it can only be seen from a message,
// it may.
func (s *Statement) MayHave(member string) bool {
	return s.value || slices.ContainsFunc(s.items, func(i item) bool { return i.of == nil || string(i.as[0]) == member })
}

// Output is what a statement makes of a message.
type Output struct {
	// Payload is compact JSON, except for SELECT *, which gives the very bytes of the message's payload, whatever they are.
	// It is empty for SELECT VALUE of something Undefined.
	Payload []byte
	// Variables are the values of the statement's SET for this message, for templates; nil without SET.
	Variables *Variables
}

// Variables are what SET has defined for one message, so that templates see the same newuuid() as the output does.
type Variables struct {
	of     []assignment // the statement's, for identity
	values []value
}

// Eval applies the statement to a message. matched is false where WHERE does not hold; there is then no output. Whether the
// topic matches Filter is the caller's business. Errors: what the payload must be and is not (*PayloadError), a limit that
// was passed, and what the Lookup says.
//
// The output may share memory with in.Payload.
func (s *Statement) Eval(in *Input) (out Output, matched bool, err error) {
	e := newEnv(&s.program, in)
	defer e.release()
	return s.run(e)
}

func (s *Statement) run(e *env) (out Output, matched bool, err error) {
	if s.where != nil && !e.holds(s.where) {
		return Output{}, false, e.err
	}
	out.Payload = s.put(e)
	if len(s.variables) > 0 {
		out.Variables = e.snapshot()
	}
	if e.err != nil {
		return Output{}, false, e.err
	}
	return out, true, nil
}

// put makes the output.
func (s *Statement) put(e *env) []byte {
	if s.starOnly() {
		return e.in.Payload
	}
	// Where members are to be taken from a payload that has none, silence would be a loss that nobody sees.
	if s.reads && len(e.in.Payload) > 0 && !e.index() {
		e.fail(e.payloadError("JSON, to take members from it"))
		return nil
	}
	switch {
	case s.value:
		return slices.Clone(e.into(e.eval(s.items[0].of)))
	case s.plain:
		return slices.Clone(e.plain(s.items))
	}
	base := e.base(s.items)
	if s.more && base.b != nil && e.err == nil {
		return slices.Clone(e.more(base.b, s.items[1:]))
	}
	n := s.build(e, base)
	return slices.Clone(e.into(value{kind: Object, node: n}))
}

// plain writes items straight into the buffer.
func (e *env) plain(items []item) []byte {
	dst := append(e.out[:0], '{')
	for i := range items {
		v := e.eval(items[i].of)
		if v.kind == Undefined || v.kind == binary {
			continue
		}
		if len(dst) > 1 {
			dst = append(dst, ',')
		}
		dst = appendQuoted(dst, items[i].as[0])
		dst = append(dst, ':')
		dst = e.appendJSON(dst, v)
	}
	e.out = append(dst, '}')
	return e.out
}

// more writes the members of the payload and after them the items, without those members that the items replace.
func (e *env) more(payload []byte, items []item) []byte {
	base := len(e.stack)
	for i := range items {
		v := e.eval(items[i].of)
		e.stack = append(e.stack, v)
	}
	values := e.stack[base:]
	dst := append(e.out[:0], '{')
members:
	for w := walkOver(payload); w.next(); {
		for i, v := range values {
			if v.kind != Undefined && v.kind != binary && keyIs(w.key, items[i].as[0]) {
				continue members
			}
		}
		if len(dst) > 1 {
			dst = append(dst, ',')
		}
		dst = append(append(dst, w.key...), ':')
		dst = appendCompact(dst, w.val)
	}
	for i, v := range values {
		if v.kind != Undefined && v.kind != binary {
			if len(dst) > 1 {
				dst = append(dst, ',')
			}
			dst = appendQuoted(dst, items[i].as[0])
			dst = append(dst, ':')
			dst = e.appendJSON(dst, v)
		}
	}
	clear(values)
	e.stack = e.stack[:base]
	e.out = append(dst, '}')
	return e.out
}

func (e *env) into(v value) []byte {
	e.out = e.appendJSON(e.out[:0], v)
	return e.out
}

// readsPayload tells expressions that take something from the payload as JSON, also by a variable. encode(*, …) takes bytes.
func (p *program) readsPayload(x expr) bool {
	switch x := x.(type) {
	case *path:
		return !x.nested
	case *star:
		return !x.nested
	case *variable:
		return p.variables[x.index].reads
	case *call:
		if _, whole := x.bytesOf(); whole {
			return slices.ContainsFunc(x.args[1:], p.readsPayload)
		}
	}
	return slices.ContainsFunc(children(x), p.readsPayload)
}

// base is what * stands for beside other items: the members of the payload; an empty payload has none.
func (e *env) base(items []item) value {
	for _, one := range items {
		if one.of != nil || len(e.in.Payload) == 0 {
			continue
		}
		v := e.payload()
		if v.kind != Object {
			e.fail(e.payloadError("a JSON object, to add members to it; use SELECT * alone, or encode(*, 'base64')"))
		}
		return v
	}
	return value{kind: Object, node: &node{}}
}

// build makes an object of the items; star is what * stands for.
func (s *selection) build(e *env, star value) *node {
	n := &node{}
	for _, one := range s.items {
		if one.of != nil {
			if v := e.eval(one.of); v.kind != Undefined && v.kind != binary {
				n.putAt(one.as, v)
			}
			continue
		}
		if star.kind != Object {
			continue
		}
		if len(n.names) == 0 {
			n = star.opened()
			continue
		}
		from := star.opened()
		for i, name := range from.names {
			n.put(name, from.items[i])
		}
	}
	return n
}

// putAt sets a member at a path and makes the objects on the way.
func (n *node) putAt(path [][]byte, v value) {
	for ; len(path) > 1; path = path[1:] {
		inner := value{kind: Object, node: n}.member(path[0])
		next := &node{}
		if inner.kind == Object {
			next = inner.opened()
		}
		n.put(path[0], value{kind: Object, node: next})
		n = next
	}
	n.put(path[0], v)
}
