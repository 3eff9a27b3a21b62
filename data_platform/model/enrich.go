package model

import (
	"encoding/json"
	"fmt"
	"slices"
)

// twinParts are what a pointer into a twin may begin with: what stands in its state, and beside it.
var twinParts = []string{"reported", "desired", "metadata", "version", "timestamp"}

// Columns are the names of the columns that Enrich gives, in the order of Twin.
func (e *Enrich) Columns() (names []string) {
	for _, at := range e.Twin {
		names = append(names, twinColumn(at))
	}
	return names
}

func twinColumn(at string) string {
	tokens, err := pointer(at)
	if err != nil {
		return "" // it was checked
	}
	return "twin_" + tokens[len(tokens)-1]
}

// Of gives the columns' values from a twin's document, each its JSON as a string, or nil where there is none. Without a
// document all are nil. An error is the document's: it is no JSON object.
func (e *Enrich) Of(document []byte) ([]any, error) {
	values := make([]any, len(e.Twin))
	if len(document) == 0 {
		return values, nil
	}
	var parts, state map[string]json.RawMessage
	if err := json.Unmarshal(document, &parts); err != nil {
		return nil, err
	}
	if raw := parts["state"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &state); err != nil {
			return nil, fmt.Errorf("its state: %w", err)
		}
	}
	for i, at := range e.Twin {
		tokens, err := pointer(at)
		if err != nil {
			return nil, err // it was checked
		}
		raw := parts[tokens[0]]
		if tokens[0] == "reported" || tokens[0] == "desired" {
			raw = state[tokens[0]]
		}
		for _, t := range tokens[1:] {
			raw = below(raw, t)
		}
		if len(raw) > 0 && string(raw) != "null" {
			values[i] = string(raw)
		}
	}
	return values, nil
}

// below is what stands under a name, or in an array under a number; nil where nothing does.
func below(raw json.RawMessage, token string) json.RawMessage {
	if len(raw) == 0 {
		return nil
	}
	switch raw[0] {
	case '{':
		var m map[string]json.RawMessage
		if json.Unmarshal(raw, &m) == nil {
			return m[token]
		}
	case '[':
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) == nil {
			for i := range list {
				if fmt.Sprint(i) == token {
					return list[i]
				}
			}
		}
	}
	return nil
}

// checkTwin finds what is wrong with one of Enrich.Twin by itself.
func checkTwin(tokens []string) string {
	if !slices.Contains(twinParts, tokens[0]) {
		return fmt.Sprintf("a twin has no /%s; it has /reported/…, /desired/…, /metadata/…, /version and /timestamp", tokens[0])
	}
	return ""
}
