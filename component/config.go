package component

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/naru-platform/naru/internal/near"
)

// decodeStrict reads JSON into a struct and refuses what the struct does not know, at any depth, naming where it stands
// and the nearest that is known there.
func decodeStrict(raw json.RawMessage, into any) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("want an object of settings: %w", err)
	}
	if err := unknown(raw, reflect.TypeOf(into), ""); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// unknown finds the first key that a type does not have. What is not of the type's form is left to the decoder.
func unknown(raw json.RawMessage, t reflect.Type, path string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		var m map[string]json.RawMessage
		if json.Unmarshal(raw, &m) != nil {
			return nil
		}
		known := map[string]reflect.Type{}
		if t.Kind() == reflect.Struct {
			fields(t, func(name string, of reflect.Type) { known[name] = of })
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			of := known[k]
			switch {
			case t.Kind() == reflect.Map:
				of = t.Elem()
			case of == nil && path != "":
				return fmt.Errorf("in %s: %w", path, UnknownKey(k, slices.Sorted(maps.Keys(known))))
			case of == nil:
				return UnknownKey(k, slices.Sorted(maps.Keys(known)))
			}
			if err := unknown(m[k], of, strings.TrimPrefix(path+"."+k, ".")); err != nil {
				return err
			}
		}
	case reflect.Slice, reflect.Array:
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			return nil
		}
		for i, one := range list {
			if err := unknown(one, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// fields gives a struct's fields by their names in JSON, those of embedded structs among them.
func fields(t reflect.Type, f func(name string, of reflect.Type)) {
	for i := range t.NumField() {
		field := t.Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case field.Anonymous && name == "" && field.Type.Kind() == reflect.Struct:
			fields(field.Type, f)
		case !field.IsExported():
		case name == "":
			f(field.Name, field.Type)
		default:
			f(name, field.Type)
		}
	}
}

// Keys are the names of a struct's fields in JSON.
func Keys(v any) []string {
	t := reflect.TypeOf(v)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var keys []string
	fields(t, func(name string, _ reflect.Type) { keys = append(keys, name) })
	return keys
}

// UnknownKey is the error for a setting that does not exist; it names the nearest that does.
func UnknownKey(key string, known []string) error {
	best := near.Within(key, known, len(key)/2+1)
	switch {
	case best != "":
		return fmt.Errorf("there is no setting %q; did you mean %q?", key, best)
	case len(known) == 0:
		return fmt.Errorf("there is no setting %q; there are none", key)
	}
	return fmt.Errorf("there is no setting %q; there are %s", key, strings.Join(known, ", "))
}
