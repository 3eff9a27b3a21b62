package model

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/internal/span"
)

// value reads a JSON value as the field's type; null is nil. The error goes on where the field's name stands.
func (f *Field) value(raw []byte) (any, error) {
	if raw[0] == 'n' {
		return nil, nil
	}
	switch f.Type {
	case Bool:
		switch raw[0] {
		case 't':
			return true, nil
		case 'f':
			return false, nil
		}
		return nil, fmt.Errorf("is %s; it is true or false", sketch(raw))
	case Int:
		return intOf(raw)
	case Double:
		if !isNumber(raw) {
			return nil, fmt.Errorf("is %s; it is a number", sketch(raw))
		}
		v, err := strconv.ParseFloat(string(raw), 64)
		if err != nil {
			return nil, fmt.Errorf("is %s, beyond what a double holds", sketch(raw))
		}
		return v, nil
	case Text:
		if raw[0] != '"' {
			return nil, fmt.Errorf("is %s; it is a text", sketch(raw))
		}
		s := unquote(raw)
		if strings.IndexByte(s, 0) >= 0 {
			return nil, errors.New("has a NUL character, which no text of a database holds")
		}
		return s, nil
	case Time:
		if t, ok := timeOf(raw); ok {
			return t, nil
		}
		return nil, fmt.Errorf("is %s; it is a time such as \"2026-11-28T03:00:00Z\", or seconds, milli-, micro- or nanoseconds since 1970", sketch(raw))
	case Bytes:
		if raw[0] == '"' {
			if b, err := base64.StdEncoding.DecodeString(unquote(raw)); err == nil {
				return b, nil
			}
		}
		return nil, fmt.Errorf("is %s; bytes are base64 in JSON", sketch(raw))
	}
	return string(raw), nil
}

// Accept makes a value that comes from elsewhere, such as a pipeline's step, one of the field's type where that loses
// nothing: any kind of number, text, time, bool and bytes; nil stays. The error is a sentence that begins with the field's
// name. Bounds are not looked at; see Dataset.Check.
func (f *Field) Accept(v any) (any, error) {
	if v == nil {
		return nil, nil
	}
	out, ok := f.accept(v)
	if !ok {
		return nil, fmt.Errorf("%s is %s (%T); it is %s", f.Name, sketch(fmt.Append(nil, v)), v, f.Type)
	}
	return out, nil
}

func (f *Field) accept(v any) (any, bool) {
	whole, isWhole := int64(0), true
	switch v := v.(type) {
	case int:
		whole = int64(v)
	case int8:
		whole = int64(v)
	case int16:
		whole = int64(v)
	case int32:
		whole = int64(v)
	case int64:
		whole = v
	case uint8:
		whole = int64(v)
	case uint16:
		whole = int64(v)
	case uint32:
		whole = int64(v)
	case uint64:
		whole, isWhole = int64(v), v <= math.MaxInt64
	default:
		isWhole = false
	}
	switch f.Type {
	case Bool:
		b, ok := v.(bool)
		return b, ok
	case Int:
		if isWhole {
			return whole, true
		}
		n, ok := doubleOf(v)
		if ok && n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return int64(n), true
		}
		return nil, false
	case Double:
		if isWhole {
			return float64(whole), true
		}
		n, ok := doubleOf(v)
		return n, ok && !math.IsNaN(n) && !math.IsInf(n, 0)
	case Text:
		s, ok := v.(string)
		return s, ok && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
	case Time:
		t, ok := v.(time.Time)
		return t.UTC().Truncate(time.Microsecond), ok
	case Bytes:
		b, ok := v.([]byte)
		return b, ok
	}
	switch v := v.(type) {
	case string:
		return v, json.Valid([]byte(v))
	case []byte:
		return string(v), json.Valid(v)
	case json.RawMessage:
		return string(v), json.Valid(v)
	}
	raw, err := json.Marshal(v)
	return string(raw), err == nil
}

func doubleOf(v any) (float64, bool) {
	switch v := v.(type) {
	case float64:
		return v, true
	case float32:
		return float64(v), true
	case interface{ Float64() float64 }: // decimals of a database
		return v.Float64(), true
	case uint64:
		return float64(v), true
	}
	return 0, false
}

func isNumber(raw []byte) bool { return raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9' }

func intOf(raw []byte) (any, error) {
	wrong := func(why string) (any, error) { return nil, fmt.Errorf("is %s; %s", sketch(raw), why) }
	if !isNumber(raw) {
		return wrong("it is a whole number")
	}
	v, err := strconv.ParseInt(string(raw), 10, 64)
	if err == nil {
		return v, nil
	}
	if errors.Is(err, strconv.ErrRange) {
		return wrong("a whole number has 64 bits")
	}
	d, err := strconv.ParseFloat(string(raw), 64) // 3.0 and 3e2 are whole as well
	switch {
	case err != nil || math.Abs(d) > 1<<53:
		return wrong("a whole number that is written so goes to 2^53")
	case d != math.Trunc(d):
		return wrong("it is a whole number")
	}
	return int64(d), nil
}

// timeOf reads a time as RFC 3339 writes it, or as a number since 1970: seconds, milli-, micro- or nanoseconds, by its size.
func timeOf(raw []byte) (time.Time, bool) {
	if raw[0] == '"' {
		t, err := time.Parse(time.RFC3339Nano, string(raw[1:len(raw)-1]))
		return t.UTC().Truncate(time.Microsecond), err == nil && t.Year() >= 1 && t.Year() <= 9999
	}
	if !isNumber(raw) {
		return time.Time{}, false
	}
	if v, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		switch a := max(v, -v); {
		case a < 1e11:
			return time.Unix(v, 0).UTC(), true
		case a < 1e14:
			return time.UnixMilli(v).UTC(), true
		case a < 1e17:
			return time.UnixMicro(v).UTC(), true
		}
		return time.Unix(0, v).UTC().Truncate(time.Microsecond), true
	}
	if d, err := strconv.ParseFloat(string(raw), 64); err == nil && math.Abs(d) < 1e11 {
		return time.UnixMicro(int64(math.Round(d * 1e6))).UTC(), true
	}
	return time.Time{}, false
}

// unquote reads a JSON string. What is no character (half of a surrogate pair) becomes U+FFFD.
func unquote(raw []byte) string {
	for _, c := range raw {
		if c == '\\' {
			var s string
			if json.Unmarshal(raw, &s) != nil {
				return ""
			}
			return s
		}
	}
	return string(raw[1 : len(raw)-1])
}

// sketch shows a value to a person, in one short line.
func sketch(raw []byte) string {
	const most = 60
	if len(raw) == 0 {
		return "empty"
	}
	cut := ""
	if len(raw) > most {
		raw, cut = raw[:most], "…"
		for len(raw) > 0 && !utf8.Valid(raw) && len(raw) > most-4 {
			raw = raw[:len(raw)-1]
		}
	}
	if !utf8.Valid(raw) {
		return "not UTF-8"
	}
	s := string(raw)
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		s = strconv.Quote(s)
	}
	return s + cut
}

// deep says whether valid JSON nests too far.
func deep(b []byte) bool {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			i = span.String(b, i) - 1
		case '{', '[':
			if depth++; depth > depthMax {
				return true
			}
		case '}', ']':
			depth--
		}
	}
	return false
}
