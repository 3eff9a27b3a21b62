package sql

import "strings"

// castTypes are the words after AS in cast(x AS type), lower case.
var castTypes = map[string]Kind{
	"string": String, "nvarchar": String, "text": String, "ntext": String, "varchar": String,
	"int": Int, "integer": Int, "double": Decimal, "decimal": Decimal, "bool": Boolean, "boolean": Boolean,
}

// conversion is cast(of AS to): the usual conversions, and numbers to and from Boolean.
type conversion struct {
	place
	of expr
	to Kind
}

func (x *conversion) eval(e *env) value {
	v := e.eval(x.of)
	if e.work(v.size()); e.err != nil {
		return undefined
	}
	switch x.to {
	case String:
		b, ok := e.toText(v)
		if !ok {
			return undefined
		}
		return e.limited(b)
	case Boolean:
		return toBooleanByCast(v)
	}
	d, ok := v.toDecimal()
	if v.kind == Boolean {
		d, ok = decimal{}, true
		if v.yes {
			d = whole(1)
		}
	}
	if x.to == Int {
		d = d.round(0, towardFloor)
	}
	return number(d, ok)
}

func toBooleanByCast(v value) value {
	switch v.kind {
	case Boolean:
		return v
	case Int, Decimal:
		return boolean(v.num.sign() != 0)
	case String:
		switch strings.ToLower(string(v.b)) {
		case "true":
			return boolean(true)
		case "false":
			return boolean(false)
		}
	}
	return undefined
}
