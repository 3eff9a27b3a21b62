package component

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// decodeStrict reads JSON into a struct and refuses what the struct does not know, naming the nearest that it does.
func decodeStrict(raw json.RawMessage, into any) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("want an object of settings: %w", err)
	}
	known := Keys(into)
	for k := range m {
		if !slices.Contains(known, k) {
			return UnknownKey(k, known)
		}
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// Keys are the names of a struct's fields in JSON.
func Keys(v any) []string {
	t := reflect.TypeOf(v)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		if f.IsExported() && name != "-" {
			keys = append(keys, name)
		}
	}
	return keys
}

// UnknownKey is the error for a setting that does not exist; it names the nearest that does.
func UnknownKey(key string, known []string) error {
	best, at := "", len(key)/2+2
	for _, k := range known {
		if d := distance(key, k); d < at {
			best, at = k, d
		}
	}
	switch {
	case best != "":
		return fmt.Errorf("there is no setting %q; did you mean %q?", key, best)
	case len(known) == 0:
		return fmt.Errorf("there is no setting %q; there are none", key)
	}
	return fmt.Errorf("there is no setting %q; there are %s", key, strings.Join(known, ", "))
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
