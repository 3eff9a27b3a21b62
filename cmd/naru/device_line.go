package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/naru-platform/naru/internal/near"
	"github.com/naru-platform/naru/service_platform/x509"
)

// exportedToo are fields that an export writes and an import does not take over: they say how it came to be so elsewhere.
var exportedToo = []string{"state", "disabled_at", "disabled_by", "disabled_reason", "tokens_void", "gone", "unsaid"}

// readLine reads a device of a fleet in JSON. A field that is not known is refused: what somebody wrote in it would be lost
// without a word.
func readLine(line []byte) (d x509.Import, err error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(line, &fields); err != nil {
		return d, plainJSON(err)
	}
	_ = json.Unmarshal(fields["id"], &d.ID) // so that what is wrong with it can be told by its name
	for _, name := range exportedToo {
		delete(fields, name)
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return d, err
	}
	return d, readFields(raw, &d)
}

// readFields reads JSON into a value, and names a field that the value does not have.
func readFields(raw []byte, into any) error {
	decode := json.NewDecoder(bytes.NewReader(raw))
	decode.DisallowUnknownFields()
	err := decode.Decode(into)
	if err != nil {
		if _, name, ok := strings.Cut(err.Error(), "unknown field "); ok {
			return fmt.Errorf("there is no field %s", unknownName(strings.Trim(name, `"`), fieldsOf(reflect.TypeOf(into))))
		}
		return plainJSON(err)
	}
	if _, err := decode.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind its end")
	}
	return nil
}

// unknownName is a name that is not known, with what it may have been meant to be.
func unknownName(name string, known []string) string {
	all := strings.Join(known, ", ")
	if meant := near.Word(name, known); meant != "" {
		return fmt.Sprintf("%q; did you mean %q? There are %s", name, meant, all)
	}
	return fmt.Sprintf("%q; there are %s", name, all)
}

// fieldsOf are the names that JSON has for a type's fields, and for those of what it lists.
func fieldsOf(t reflect.Type) (names []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "by" { // who imports is not the file's to say
			continue
		}
		names = append(names, name)
		if f.Type.Kind() == reflect.Slice {
			names = append(names, fieldsOf(f.Type)...)
		}
	}
	return slices.Compact(names)
}

// plainJSON says what is wrong with JSON to somebody who does not know Go.
func plainJSON(err error) error {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &kind) && kind.Field == "":
		return fmt.Errorf("a JSON object is wanted, not a %s", kind.Value)
	case errors.As(err, &kind):
		return fmt.Errorf("%s cannot be a %s", kind.Field, kind.Value)
	case errors.As(err, &syntax):
		return fmt.Errorf("it is no JSON: %w, at byte %d", err, syntax.Offset)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("it is no JSON: it ends too early")
	}
	return err
}
