package api

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/naru-platform/naru/data_platform/storage"
)

// arrowBatch is how many rows one record batch has.
const arrowBatch = 8192

var arrowTypes = map[storage.Type]arrow.DataType{
	storage.Bool:   arrow.FixedWidthTypes.Boolean,
	storage.Int:    arrow.PrimitiveTypes.Int64,
	storage.Double: arrow.PrimitiveTypes.Float64,
	storage.Text:   arrow.BinaryTypes.String,
	storage.Time:   arrow.FixedWidthTypes.Timestamp_us,
	storage.JSON:   arrow.BinaryTypes.String,
	storage.Bytes:  arrow.BinaryTypes.Binary,
	storage.UUID:   arrow.BinaryTypes.String,
}

// arrowRows writes a stream of Arrow's IPC format.
type arrowRows struct {
	w       *ipc.Writer
	b       *array.RecordBuilder
	columns []storage.Column
	rows    int
}

func newArrow(w io.Writer, columns []storage.Column) (encoder, error) {
	fields := make([]arrow.Field, len(columns))
	for i, c := range columns {
		t, ok := arrowTypes[c.Type]
		if !ok {
			return nil, fmt.Errorf("column %s of type %s", c.Name, c.Type)
		}
		fields[i] = arrow.Field{Name: c.Name, Type: t, Nullable: true}
		if c.Type == storage.JSON || c.Type == storage.UUID {
			fields[i].Metadata = arrow.NewMetadata([]string{"naru.type"}, []string{string(c.Type)})
		}
	}
	schema := arrow.NewSchema(fields, nil)
	return &arrowRows{w: ipc.NewWriter(w, ipc.WithSchema(schema), ipc.WithAllocator(memory.DefaultAllocator)), b: array.NewRecordBuilder(memory.DefaultAllocator, schema), columns: columns}, nil
}

func (a *arrowRows) row(values []any) error {
	for i, v := range values {
		ok := true
		switch b := a.b.Field(i).(type) {
		case *array.BooleanBuilder:
			ok = add(b, v, b.Append)
		case *array.Int64Builder:
			ok = add(b, v, b.Append)
		case *array.Float64Builder:
			ok = add(b, v, b.Append)
		case *array.TimestampBuilder:
			ok = add(b, v, func(t time.Time) { b.Append(arrow.Timestamp(t.UnixMicro())) })
		case *array.BinaryBuilder:
			ok = add(b, v, b.Append)
		case *array.StringBuilder:
			if raw, is := v.(json.RawMessage); is {
				b.Append(string(raw))
			} else {
				ok = add(b, v, b.Append)
			}
		}
		if !ok {
			return &storage.RefusedError{Why: fmt.Sprintf("column %s has %v, which is no %s of an answer in Arrow; cast it to VARCHAR or DOUBLE, or ask for json", a.columns[i].Name, shown(v), a.columns[i].Type)}
		}
	}
	if a.rows++; a.rows%arrowBatch == 0 {
		return a.flush()
	}
	return nil
}

// shown is a value in an error.
func shown(v any) any {
	if raw, ok := v.(json.RawMessage); ok {
		return string(raw)
	}
	return v
}

// add appends a value of type T, or null; it gives false for any other.
func add[T any](b array.Builder, v any, f func(T)) bool {
	if v == nil {
		b.AppendNull()
		return true
	}
	x, ok := v.(T)
	if ok {
		f(x)
	}
	return ok
}

func (a *arrowRows) flush() error {
	r := a.b.NewRecordBatch()
	defer r.Release()
	if r.NumRows() == 0 {
		return nil
	}
	return a.w.Write(r)
}

func (a *arrowRows) end() error {
	if err := a.flush(); err != nil {
		return err
	}
	a.b.Release()
	return a.w.Close()
}
