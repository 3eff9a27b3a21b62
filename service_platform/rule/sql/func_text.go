package sql

import (
	"bytes"
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// Functions over Strings. Other values become Strings first, except Null and Undefined, which make the result Undefined.
// Characters are Unicode code points.
var textFunctions = []function{
	{name: "length", min: 1, max: 1, call: measure(utf8.RuneCount)},
	{name: "numbytes", min: 1, max: 1, call: measure(func(b []byte) int { return len(b) })},
	{name: "lower", min: 1, max: 1, call: change(bytes.ToLower)},
	{name: "upper", min: 1, max: 1, call: change(bytes.ToUpper)},
	{name: "trim", min: 1, max: 1, call: change(bytes.TrimSpace)},
	{name: "ltrim", min: 1, max: 1, call: change(func(b []byte) []byte { return bytes.TrimLeft(b, " \t") })},
	{name: "rtrim", min: 1, max: 1, call: change(func(b []byte) []byte { return bytes.TrimRight(b, " \t") })},
	{name: "lpad", min: 2, max: 2, call: pad(true)},
	{name: "rpad", min: 2, max: 2, call: pad(false)},
	{name: "startswith", min: 2, max: 2, call: compare(func(s, part []byte) value { return boolean(bytes.HasPrefix(s, part)) })},
	{name: "endswith", min: 2, max: 2, call: compare(func(s, part []byte) value { return boolean(bytes.HasSuffix(s, part)) })},
	{name: "indexof", min: 2, max: 2, call: compare(indexOf)},
	{name: "replace", min: 3, max: 3, call: replaceAll},
	{name: "substring", min: 2, max: 3, call: substring},
	{name: "chr", min: 1, max: 1, call: chr},
	{name: "encode", min: 2, max: 2, call: encode},
	{name: "decode", min: 2, max: 6, call: decode, prepare: refuseSchemes},
}

func measure(f func([]byte) int) func(*env, *call, []value) value {
	return func(e *env, _ *call, a []value) value {
		b, ok := e.toText(a[0])
		return number(whole(int64(f(b))), ok)
	}
}

func change(f func([]byte) []byte) func(*env, *call, []value) value {
	return func(e *env, _ *call, a []value) value {
		b, ok := e.toText(a[0])
		if !ok {
			return undefined
		}
		return e.limited(f(b))
	}
}

func compare(f func(s, part []byte) value) func(*env, *call, []value) value {
	return func(e *env, _ *call, a []value) value {
		s, ok := e.toText(a[0])
		part, both := e.toText(a[1])
		if !ok || !both {
			return undefined
		}
		return f(s, part)
	}
}

func indexOf(s, part []byte) value {
	i := bytes.Index(s, part)
	if i < 0 {
		return number(whole(-1), true)
	}
	return number(whole(int64(utf8.RuneCount(s[:i]))), true)
}

const padMax = 1000

func pad(left bool) func(*env, *call, []value) value {
	return func(e *env, _ *call, a []value) value {
		s, ok := e.toText(a[0])
		d, both := a[1].toDecimal()
		if !ok || !both {
			return undefined
		}
		n := int(min(max(d.round(0, towardFloor).int(), 0), padMax))
		out := make([]byte, 0, len(s)+n)
		if !left {
			out = append(out, s...)
		}
		out = append(out, strings.Repeat(" ", n)...)
		if left {
			out = append(out, s...)
		}
		return e.limited(out)
	}
}

func replaceAll(e *env, _ *call, a []value) value {
	s, ok := e.toText(a[0])
	from, two := e.toText(a[1])
	to, three := e.toText(a[2])
	if !ok || !two || !three {
		return undefined
	}
	if grown := (len(to) - len(from)) * bytes.Count(s, from); len(s)+grown > outputMax {
		e.fail(errTooLarge)
		return undefined
	}
	return e.limited(bytes.ReplaceAll(s, from, to))
}

func substring(e *env, _ *call, a []value) value {
	b, ok := e.toText(a[0])
	if !ok {
		return undefined
	}
	s := []rune(string(b))
	index := func(v value) (int, bool) {
		d, ok := v.toDecimal()
		return int(min(max(d.round(0, towardFloor).int(), 0), int64(len(s)))), ok
	}
	from, ok := index(a[1])
	to := len(s)
	if ok && len(a) == 3 {
		to, ok = index(a[2])
	}
	if !ok {
		return undefined
	}
	return text(string(s[min(from, to):to]))
}

func chr(_ *env, _ *call, a []value) value {
	d, ok := a[0].toDecimal()
	if !ok {
		return undefined
	}
	code := d.round(0, towardFloor).int()
	if code < 0 || code > 127 {
		return undefined
	}
	return text(string(rune(code)))
}

// encode(value, 'base64'); of * it takes the bytes as they came.
func encode(e *env, c *call, a []value) value {
	if !a[1].isText("base64") {
		return undefined
	}
	var b []byte
	if _, whole := c.bytesOf(); whole {
		b = e.in.Payload
	} else {
		var ok bool
		if b, ok = e.toText(a[0]); !ok {
			return undefined
		}
	}
	if base64.StdEncoding.EncodedLen(len(b)) > outputMax {
		e.fail(errTooLarge)
		return undefined
	}
	return textBytes(base64.StdEncoding.AppendEncode(nil, b))
}

// decode(value, 'base64') gives an Object or Array where the bytes are one, and a String otherwise; what is no base64 is
// Null.
func decode(e *env, _ *call, a []value) value {
	if len(a) != 2 || !a[1].isText("base64") {
		return undefined
	}
	b, ok := e.toText(a[0])
	if !ok {
		return undefined
	}
	out, err := base64.StdEncoding.AppendDecode(nil, b)
	if err != nil {
		return null
	}
	if trimmed := bytes.TrimSpace(out); len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[') {
		if c := (checker{b: trimmed}); c.check() {
			return fromJSON(trimmed)
		}
	}
	return e.limited(bytes.ToValidUTF8(out, []byte("\uFFFD")))
}

// refuseSchemes names what decode() cannot do while the statement is compiled.
func refuseSchemes(p *parser, c *call) {
	if l, ok := c.args[1].(*literal); ok && l.v.kind == String && !l.v.isText("base64") {
		remedy := ""
		if l.v.isText("proto") {
			remedy = "a worker can decode Protocol Buffers"
		}
		p.failAt(l.from, "the scheme 'base64'", "the string "+cut(string(l.v.b)), remedy)
	}
}
