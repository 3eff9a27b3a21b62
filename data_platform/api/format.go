package api

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/answer"
)

// format is a way to write rows.
type format struct {
	name, media string
	accept      []string // other names of it
	begin       func(w io.Writer, columns []storage.Column) (encoder, error)
}

// encoder writes the rows of one answer.
type encoder interface {
	row(values []any) error
	end() error
}

var formats = []format{
	{"json", "application/json", nil, newJSON},
	{"ndjson", "application/x-ndjson", []string{"application/jsonl", "application/ndjson"}, newNDJSON},
	{"csv", "text/csv; charset=utf-8", []string{"text/csv"}, newCSV},
	{"arrow", "application/vnd.apache.arrow.stream", nil, newArrow},
}

// formatOf is what a request wants: format=, else what it accepts, else JSON.
func formatOf(r *http.Request) (*format, error) {
	if name := r.FormValue("format"); name != "" {
		for i := range formats {
			if formats[i].name == name {
				return &formats[i], nil
			}
		}
		return nil, answer.Bad(fmt.Errorf("format=%s: there are json, ndjson, csv and arrow", name))
	}
	best, quality := &formats[0], 0.0
	for _, part := range strings.Split(strings.Join(r.Header.Values("Accept"), ","), ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			q, _ = strconv.ParseFloat(s, 64)
		}
		for i := range formats {
			f := &formats[i]
			is := media == strings.Split(f.media, ";")[0]
			for _, other := range f.accept {
				is = is || media == other
			}
			if is && q > quality {
				best, quality = f, q
			}
		}
	}
	return best, nil
}

// jsonRows writes an array of objects, or with lines an object a line; keys are in the order of the columns.
type jsonRows struct {
	w     io.Writer
	keys  [][]byte
	types []storage.Type
	lines bool
	rows  int
	b     []byte
}

func newJSON(w io.Writer, columns []storage.Column) (encoder, error) {
	return beginJSON(w, columns, false)
}

func newNDJSON(w io.Writer, columns []storage.Column) (encoder, error) {
	return beginJSON(w, columns, true)
}

func beginJSON(w io.Writer, columns []storage.Column, lines bool) (encoder, error) {
	j := &jsonRows{w: w, lines: lines}
	taken := map[string]bool{}
	for _, c := range columns {
		name := c.Name
		for n := 2; taken[name]; n++ { // of two equal keys most readers would see the last one
			name = c.Name + "_" + strconv.Itoa(n)
		}
		taken[name] = true
		j.keys = append(j.keys, append(appendText(nil, name), ':'))
		j.types = append(j.types, c.Type)
	}
	if lines {
		return j, nil
	}
	_, err := io.WriteString(w, "[")
	return j, err
}

func (j *jsonRows) row(values []any) (err error) {
	b := j.b[:0]
	if j.rows++; j.rows > 1 && !j.lines {
		b = append(b, ",\n"...)
	}
	b = append(b, '{')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, j.keys[i]...)
		if b, err = appendJSON(b, v); err != nil {
			return err
		}
	}
	b = append(b, '}')
	if j.lines {
		b = append(b, '\n')
	}
	j.b = b
	_, err = j.w.Write(b)
	return err
}

func (j *jsonRows) end() error {
	if j.lines {
		return nil
	}
	_, err := io.WriteString(j.w, "]\n")
	return err
}

// appendJSON appends a value. Numbers keep all their digits; what no number of JSON can be is a text.
func appendJSON(b []byte, v any) ([]byte, error) {
	switch x := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, x), nil
	case int64:
		return strconv.AppendInt(b, x, 10), nil
	case float64:
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return appendText(b, strconv.FormatFloat(x, 'g', -1, 64)), nil
		}
		raw, err := json.Marshal(x)
		return append(b, raw...), err
	case string:
		return appendText(b, x), nil
	case time.Time:
		b = append(b, '"')
		return append(x.UTC().AppendFormat(b, time.RFC3339Nano), '"'), nil
	case []byte:
		b = append(b, '"')
		return append(base64.StdEncoding.AppendEncode(b, x), '"'), nil
	case json.RawMessage:
		var out bytes.Buffer
		if err := json.Compact(&out, x); err != nil {
			return b, fmt.Errorf("a value of JSON is none: %w", err)
		}
		return append(b, out.Bytes()...), nil
	}
	return b, fmt.Errorf("a value of type %T", v)
}

func appendText(b []byte, s string) []byte {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a text can be written, whatever is in it
	return append(b, bytes.TrimRight(out.Bytes(), "\n")...)
}

// csvRows writes RFC 4180: a line of names first, CRLF at the end of lines. What is null is empty; an empty text is "".
type csvRows struct {
	w io.Writer
	b []byte
}

func newCSV(w io.Writer, columns []storage.Column) (encoder, error) {
	c := &csvRows{w: w}
	names := make([]any, len(columns))
	for i := range columns {
		names[i] = columns[i].Name
	}
	return c, c.row(names)
}

func (c *csvRows) row(values []any) (err error) {
	b := c.b[:0]
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		switch x := v.(type) {
		case nil:
		case string:
			b = appendField(b, x)
		case float64:
			b = strconv.AppendFloat(b, x, 'g', -1, 64)
		case time.Time:
			b = x.UTC().AppendFormat(b, time.RFC3339Nano)
		case []byte:
			b = base64.StdEncoding.AppendEncode(b, x)
		case json.RawMessage:
			var one []byte
			if one, err = appendJSON(nil, x); err != nil {
				return err
			}
			b = appendField(b, string(one))
		default:
			if b, err = appendJSON(b, v); err != nil {
				return err
			}
		}
	}
	if len(b) == 0 {
		b = append(b, `""`...) // a line with nothing in it would be no row to many who read it
	}
	c.b = append(b, "\r\n"...)
	_, err = c.w.Write(c.b)
	return err
}

func (c *csvRows) end() error { return nil }

func appendField(b []byte, s string) []byte {
	if s != "" && !strings.ContainsAny(s, ",\"\r\n") && s[0] != ' ' && s[len(s)-1] != ' ' {
		return append(b, s...)
	}
	b = append(b, '"')
	b = append(b, strings.ReplaceAll(s, `"`, `""`)...)
	return append(b, '"')
}
