package sql

// Functions over values of any type, and over Arrays and Objects.
var collectionFunctions = []function{
	{name: "get", min: 2, max: 2, call: func(_ *env, _ *call, a []value) value { return get(a[0], a[1]) }},
	{name: "get_or_default", min: 1, max: 2, call: getOrDefault},
	{name: "isNull", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value { return boolean(a[0].kind == Null) }},
	{name: "isUndefined", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value {
		return boolean(a[0].kind == Undefined || a[0].kind == binary)
	}},
	{name: "nanvl", min: 2, max: 2, call: nanvl},
	{name: "concat", min: 1, max: anyNumber, call: concat},
	{name: "transform", min: 3, max: 3, call: transform},
}

// get takes an item of an Array or a character of a String by its index from 0, or a member of an Object by its name.
func get(of, at value) value {
	switch of.kind {
	case Object:
		if at.kind != String {
			return undefined
		}
		return of.member(at.b)
	case Array, String:
		d, ok := at.toDecimal()
		if !ok {
			return undefined
		}
		if of.kind == Array {
			return of.item(d.int())
		}
		index := d.int()
		for _, r := range string(of.b) {
			if index == 0 {
				return text(string(r))
			}
			index--
		}
	}
	return undefined
}

func getOrDefault(_ *env, _ *call, a []value) value {
	switch {
	case a[0].kind != Undefined && a[0].kind != Null && a[0].kind != binary:
		return a[0]
	case len(a) == 2:
		return a[1]
	}
	return undefined
}

func nanvl(_ *env, _ *call, a []value) value {
	if a[0].kind == Undefined || a[0].kind == Null || a[0].kind == binary {
		return a[1]
	}
	return a[0]
}

// concat joins to an Array as soon as there is one, and to a String otherwise.
func concat(e *env, _ *call, a []value) value {
	arrays, texts := false, len(a) == 1
	for _, v := range a {
		arrays = arrays || v.kind == Array
		texts = texts || v.kind == String
		if v.kind == Undefined || v.kind == binary {
			return undefined
		}
	}
	if arrays {
		var items []value
		for _, v := range a {
			if v.kind != Array {
				items = append(items, v)
				continue
			}
			for _, item := range e.open(v).items {
				if !e.step() {
					return undefined
				}
				items = append(items, item)
			}
		}
		return array(items)
	}
	if !texts {
		return undefined
	}
	var out []byte
	for _, v := range a {
		b, ok := e.toText(v)
		if !ok || len(out)+len(b) > outputMax {
			if ok {
				e.fail(errTooLarge)
			}
			return undefined
		}
		out = append(out, b...)
	}
	return textBytes(out)
}

// transform("enrichArray", object, array) adds the object's members to each object of the array.
func transform(e *env, _ *call, a []value) value {
	if !a[0].isText("enrichArray") || a[1].kind != Object || a[2].kind != Array {
		return undefined
	}
	extra, out := e.open(a[1]), e.open(a[2])
	for i, item := range out.items {
		if item.kind != Object || !e.step() {
			return undefined
		}
		rich := e.open(item)
		var index map[string]int
		if len(rich.names)+len(extra.names) >= indexFrom {
			index = rich.index()
		}
		for j, name := range extra.names {
			if !e.step() {
				return undefined
			}
			if index == nil {
				rich.put(name, extra.items[j])
			} else if at, there := index[string(name)]; there {
				rich.items[at] = extra.items[j]
			} else { // the names of one object are different
				rich.names, rich.items = append(rich.names, name), append(rich.items, extra.items[j])
			}
		}
		out.items[i] = value{kind: Object, node: rich}
	}
	return value{kind: Array, node: out}
}
