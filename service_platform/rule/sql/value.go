package sql

import (
	"bytes"
	"strings"
)

// Kind is the type of a value.
type Kind uint8

// The types of the dialect.
const (
	Undefined Kind = iota
	Null
	Boolean
	Int
	Decimal
	String
	Array
	Object
	binary // the payload as a whole where it is no JSON: only encode() and SELECT * know what to do with it
)

var kindNames = [...]string{"Undefined", "Null", "Boolean", "Int", "Decimal", "String", "Array", "Object", "Binary"}

func (k Kind) String() string { return kindNames[k] }

// value is one value of any type. The zero value is Undefined.
type value struct {
	kind Kind
	yes  bool    // Boolean
	num  decimal // Int, Decimal
	b    []byte  // String: its text. Array, Object: JSON that is known to be valid. Int, Decimal: how the payload spells it
	node *node   // Array, Object that the statement made; b is nil then
}

// node is an Array (items) or an Object (names and items).
type node struct {
	names [][]byte
	items []value
}

var (
	undefined = value{}
	null      = value{kind: Null}
)

func boolean(yes bool) value         { return value{kind: Boolean, yes: yes} }
func text(s string) value            { return value{kind: String, b: []byte(s)} }
func textBytes(b []byte) value       { return value{kind: String, b: b} }
func array(items []value) value      { return value{kind: Array, node: &node{items: items}} }
func (v value) isNumber() bool       { return v.kind == Int || v.kind == Decimal }
func (v value) isText(s string) bool { return v.kind == String && string(v.b) == s }

// number gives a number the type it has by its value: whole numbers are Int in 2016-03-23.
func number(d decimal, ok bool) value {
	switch {
	case !ok:
		return undefined
	case d.isInt():
		return value{kind: Int, num: d}
	}
	return value{kind: Decimal, num: d}
}

// inexact gives the Decimal that an operation on Decimals makes; it stays one even where it is whole, so that a division
// that follows is not cut to an Int.
func inexact(d decimal, ok bool) value {
	if !ok {
		return undefined
	}
	return value{kind: Decimal, num: d}
}

func float(f float64) value { return inexact(fromFloat(f)) }

// fromJSON gives the value of JSON that is known to be valid, without white space around it. Nil is Undefined.
func fromJSON(raw []byte) value {
	if len(raw) == 0 {
		return undefined
	}
	switch raw[0] {
	case '{':
		return value{kind: Object, b: raw}
	case '[':
		return value{kind: Array, b: raw}
	case '"':
		return value{kind: String, b: unquote(raw)}
	case 't':
		return boolean(true)
	case 'f':
		return boolean(false)
	case 'n':
		return null
	}
	v := number(parseDecimal(raw, true))
	if v.kind == Decimal {
		v.b = raw
	}
	return v
}

// member gives an object's member by name, or Undefined.
func (v value) member(name []byte) value {
	switch {
	case v.kind != Object:
		return undefined
	case v.node == nil:
		return fromJSON(find(v.b, name))
	}
	for i, n := range v.node.names {
		if bytes.Equal(n, name) {
			return v.node.items[i]
		}
	}
	return undefined
}

// item gives an array's item by its index, or Undefined.
func (v value) item(index int64) value {
	if v.kind != Array || index < 0 {
		return undefined
	}
	if v.node != nil {
		if index < int64(len(v.node.items)) {
			return v.node.items[index]
		}
		return undefined
	}
	for w := walkOver(v.b); w.next(); index-- {
		if index == 0 {
			return fromJSON(w.val)
		}
	}
	return undefined
}

// size is about how many bytes are looked at where all of the value is.
func (v value) size() int {
	if v.node != nil {
		return stepBytes / 2 * len(v.node.items)
	}
	return len(v.b)
}

// opened gives an Array or Object as a node that the caller may change. Of equal names the last counts.
func (v value) opened() *node {
	n := &node{}
	if v.node != nil {
		n.items = append(n.items, v.node.items...)
		n.names = append(n.names, v.node.names...)
		return n
	}
	var index map[string]int // of large objects
	for w := walkOver(v.b); w.next(); {
		if v.kind == Array {
			n.items = append(n.items, fromJSON(w.val))
			continue
		}
		name, item := unquote(w.key), fromJSON(w.val)
		if index == nil && len(n.names) >= indexFrom {
			index = n.index()
		}
		if index == nil {
			n.put(name, item)
		} else if i, ok := index[string(name)]; ok {
			n.items[i] = item
		} else {
			index[string(name)] = len(n.names)
			n.names, n.items = append(n.names, name), append(n.items, item)
		}
	}
	return n
}

// indexFrom is the size from which looking through all names for one costs more than a map of them.
const indexFrom = 32

func (n *node) index() map[string]int {
	index := make(map[string]int, len(n.names))
	for i, name := range n.names {
		index[string(name)] = i
	}
	return index
}

// put sets a member; a new one comes last.
func (n *node) put(name []byte, v value) {
	for i, have := range n.names {
		if bytes.Equal(have, name) {
			n.items[i] = v
			return
		}
	}
	n.names = append(n.names, name)
	n.items = append(n.items, v)
}

// toDecimal is the conversion of arguments and operands to Decimal; it is false for what cannot be converted.
func (v value) toDecimal() (decimal, bool) {
	switch v.kind {
	case Int, Decimal:
		return v.num, true
	case String:
		return parseDecimal(v.b, false)
	}
	return decimal{}, false
}

// toBoolean is the conversion of logical operands; it is false for what cannot be converted.
func (v value) toBoolean() (yes, ok bool) {
	switch v.kind {
	case Boolean:
		return v.yes, true
	case String:
		switch {
		case len(v.b) == 4 && strings.EqualFold(string(v.b), "true"):
			return true, true
		case len(v.b) == 5 && strings.EqualFold(string(v.b), "false"):
			return false, true
		}
	}
	return false, false
}

// toText is the conversion of arguments to String; it is false for Null and Undefined, which have none.
func (e *env) toText(v value) ([]byte, bool) {
	switch v.kind {
	case String:
		return v.b, true
	case Undefined, Null, binary:
		return nil, false
	}
	out := e.appendJSON(nil, v)
	return out, e.err == nil
}

// appendJSON writes a value as compact JSON. Undefined items of objects and arrays are left out; a value that is Undefined
// itself writes nothing.
func (e *env) appendJSON(dst []byte, v value) []byte {
	if len(dst) > outputMax || !e.step() {
		e.fail(errTooLarge)
		return dst
	}
	switch v.kind {
	case Null:
		return append(dst, "null"...)
	case Boolean:
		if v.yes {
			return append(dst, "true"...)
		}
		return append(dst, "false"...)
	case Int:
		return v.num.append(dst)
	case Decimal:
		if v.b != nil {
			return append(dst, v.b...)
		}
		return v.num.append(dst)
	case String:
		return appendQuoted(dst, v.b)
	case Array, Object:
		if v.node == nil {
			e.work(len(v.b))
			return appendCompact(dst, v.b)
		}
		return e.appendNode(dst, v)
	}
	return dst
}

func (e *env) appendNode(dst []byte, v value) []byte {
	first := true
	brackets := "[]"
	if v.kind == Object {
		brackets = "{}"
	}
	dst = append(dst, brackets[0])
	for i, item := range v.node.items {
		if item.kind == Undefined || item.kind == binary {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		if v.kind == Object {
			dst = appendQuoted(dst, v.node.names[i])
			dst = append(dst, ':')
		}
		dst = e.appendJSON(dst, item)
	}
	return append(dst, brackets[1])
}
