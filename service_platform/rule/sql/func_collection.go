package sql

var collectionFunctions = []function{
	{name: "get", min: 2, max: 2, call: func(_ *env, _ *call, a []value) value { return get(a[0], a[1]) }},
	{name: "isNull", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value { return boolean(a[0].kind == Null) }},
	{name: "isUndefined", min: 1, max: 1, call: func(_ *env, _ *call, a []value) value { return boolean(a[0].kind == Undefined) }},
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
