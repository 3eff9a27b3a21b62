package model

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
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
	return string(paired(raw)), nil
}

// paired makes U+FFFD of what is half of a surrogate pair in valid JSON: PostgreSQL keeps it and cannot read it, DuckDB reads no
// file that has it. It may give raw itself, and does not change it.
func paired(raw []byte) []byte {
	var out []byte // nil where nothing was found
	from := 0
	for i := bytes.IndexByte(raw, '\\'); i >= 0 && i < len(raw); {
		if raw[i] != '\\' {
			next := bytes.IndexByte(raw[i:], '\\')
			if next < 0 {
				break
			}
			i += next
		}
		high, ok := escaped(raw[i:])
		if !ok {
			i += 2
			continue
		}
		switch low, follows := escaped(raw[i+6:]); {
		case !utf16.IsSurrogate(high):
			i += 6
		case follows && utf16.DecodeRune(high, low) != utf8.RuneError:
			i += 12
		default:
			out = append(append(out, raw[from:i]...), `\ufffd`...)
			i += 6
			from = i
		}
	}
	if out == nil {
		return raw
	}
	return append(out, raw[from:]...)
}

// escaped reads what begins with \u and four digits.
func escaped(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
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
		t = t.UTC().Truncate(time.Microsecond)
		return t, ok && written(t)
	case Bytes:
		b, ok := v.([]byte)
		return b, ok
	}
	var raw []byte
	switch v := v.(type) {
	case string:
		raw = []byte(v)
	case []byte:
		raw = v
	case json.RawMessage:
		raw = v
	default:
		var err error
		if raw, err = json.Marshal(v); err != nil {
			return nil, false
		}
	}
	if !utf8.Valid(raw) || !json.Valid(raw) || deep(raw) {
		return nil, false
	}
	return string(paired(raw)), true
}

// written says whether a time can be written as RFC 3339 does, which is what answers do.
func written(t time.Time) bool { return t.Year() >= 1 && t.Year() <= 9999 }

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
		t = t.UTC().Truncate(time.Microsecond)
		return t, err == nil && written(t)
	}
	t, ok := since1970(raw)
	return t, ok && written(t)
}

func since1970(raw []byte) (time.Time, bool) {
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
