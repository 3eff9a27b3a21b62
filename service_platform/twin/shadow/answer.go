package shadow

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/internal/span"
)

// AppendAccepted writes the answer to whom asked behind b: what was asked for, with its metadata.
func (u *Update) AppendAccepted(b []byte) []byte {
	b = append(b, `{"state":`...)
	b = appendNode(b, &u.ask)
	b = append(b, `,"metadata":{`...)
	n := 0
	for i := range u.ask.fields {
		if s := &u.ask.fields[i]; s.fields != nil {
			b = comma(b, n)
			n++
			b = append(appendQuoted(b, s.key), ':')
			b = u.appendAsked(b, s.fields)
		}
	}
	b = append(b, '}')
	b = u.After.appendVersion(append(b, ','), u.now)
	return append(appendToken(b, u.token), '}')
}

// appendAsked writes the metadata of what was asked for, all of it written by this update. What was removed has none.
func (u *Update) appendAsked(b []byte, fields []node) []byte {
	at := u.After.Last().At().Unix()
	b = append(b, '{')
	n := 0
	for i := range fields {
		f := &fields[i]
		if f.null() {
			continue
		}
		b = comma(b, n)
		n++
		b = append(appendQuoted(b, f.key), ':')
		if f.value() {
			b = appendStamp(b, f.text, at)
		} else {
			b = u.appendAsked(b, f.fields)
		}
	}
	return append(b, '}')
}

// AppendDelta writes what is desired and not reported behind b, all of it. Where that is nothing, nothing is written.
func (u *Update) AppendDelta(b []byte) []byte {
	if len(u.delta) == 0 {
		return b
	}
	b = u.After.appendVersion(append(b, '{'), u.now)
	b = append(b, `,"state":`...)
	b = appendObject(b, u.delta)
	b = append(b, `,"metadata":`...)
	b = u.After.appendMetadata(b, u.delta)
	return append(appendToken(b, u.token), '}')
}

// AppendDocuments writes the whole document before and after behind b.
func (u *Update) AppendDocuments(b []byte) []byte {
	b = u.Before.appendDocument(append(b, `{"previous":`...))
	b = u.After.appendDocument(append(b, `,"current":`...))
	b = strconv.AppendInt(append(b, `,"timestamp":`...), u.now.Unix(), 10)
	return append(appendToken(b, u.token), '}')
}

// Get answers with the whole document, and with what is desired and not reported. Of the request only the client token
// is read; the name is for the error.
func (d *Doc) Get(request []byte, name string, now time.Time) ([]byte, *Error) {
	token, refused := tokenOf(request)
	if refused != nil {
		return nil, refused
	}
	if !d.Exists() {
		e := missing(name)
		e.token = token
		return nil, e
	}
	delta := diff(d.desired, d.reported)
	b := make([]byte, 0, 256+8*d.stateSize())
	b = d.appendSections(append(b, `{"state":`...), delta, appendState)
	b = d.appendSections(append(b, `,"metadata":`...), delta, (*Doc).appendMetadata)
	b = d.appendVersion(append(b, ','), now)
	return append(appendToken(b, token), '}'), nil
}

// Document is the whole document without the delta, as documents of an update have it, and when it was asked for; nil
// where there is no shadow.
func (d *Doc) Document(now time.Time) []byte {
	if !d.Exists() {
		return nil
	}
	b := d.appendDocument(make([]byte, 0, 256+8*d.stateSize()))
	b = strconv.AppendInt(append(b[:len(b)-1], `,"timestamp":`...), now.Unix(), 10)
	return append(b, '}')
}

// Delete gives the document of a deleted shadow, and the answer. Of the request only the client token is read.
func (d *Doc) Delete(request []byte, name string, now time.Time) (*Doc, []byte, *Error) {
	token, refused := tokenOf(request)
	if refused != nil {
		return nil, nil, refused
	}
	if !d.Exists() {
		e := missing(name)
		e.token = token
		return nil, nil, e
	}
	b := d.appendVersion([]byte{'{'}, now)
	return d.Gone(now), append(appendToken(b, token), '}'), nil
}

// Gone is the document of the shadow when it is deleted.
func (d *Doc) Gone(now time.Time) *Doc {
	return &Doc{Version: d.Version, Changes: d.Changes + 1, Deleted: now.Truncate(time.Millisecond)} // as it is kept
}

// tokenOf gives the client token of a request that need not have one, nor be JSON.
func tokenOf(request []byte) (string, *Error) {
	if len(request) == 0 || len(request) > Defaults.Request || !utf8.Valid(request) {
		return "", nil
	}
	top, err := parse(string(request))
	if err != nil {
		return "", nil
	}
	return readToken(&top)
}

// State is desired and reported, as JSON.
func (d *Doc) State() []byte { return d.AppendState(nil) }

// AppendState writes desired and reported behind b, as JSON.
func (d *Doc) AppendState(b []byte) []byte { return d.appendSections(b, nil, appendState) }

func (d *Doc) appendVersion(b []byte, now time.Time) []byte {
	b = strconv.AppendUint(append(b, `"version":`...), d.Version, 10)
	return strconv.AppendInt(append(b, `,"timestamp":`...), now.Unix(), 10)
}

func (d *Doc) appendDocument(b []byte) []byte {
	b = d.appendSections(append(b, `{"state":`...), nil, appendState)
	b = d.appendSections(append(b, `,"metadata":`...), nil, (*Doc).appendMetadata)
	b = strconv.AppendUint(append(b, `,"version":`...), d.Version, 10)
	return append(b, '}')
}

func appendState(_ *Doc, b []byte, fields []node) []byte { return appendObject(b, fields) }

func (d *Doc) appendSections(b []byte, delta []node, f func(*Doc, []byte, []node) []byte) []byte {
	b = append(b, '{')
	n := 0
	for _, s := range [...]struct {
		name   string
		fields []node
	}{{`"desired":`, d.desired}, {`"reported":`, d.reported}, {`"delta":`, delta}} {
		if len(s.fields) > 0 {
			b = append(comma(b, n), s.name...)
			b = f(d, b, s.fields)
			n++
		}
	}
	return append(b, '}')
}

func (d *Doc) appendMetadata(b []byte, fields []node) []byte {
	b = append(b, '{')
	for i := range fields {
		f := &fields[i]
		b = append(appendQuoted(comma(b, i), f.key), ':')
		if f.value() {
			b = appendStamp(b, f.text, d.causes[f.wrote].At().Unix())
		} else {
			b = d.appendMetadata(b, f.fields)
		}
	}
	return append(b, '}')
}

func comma(b []byte, n int) []byte {
	if n > 0 {
		b = append(b, ',')
	}
	return b
}

// appendStamp writes the metadata of a value: of an array, and of objects in it, that of each thing in it.
func appendStamp(b []byte, text string, at int64) []byte {
	switch text[0] {
	case '[', '{':
		// The canonical text is copied; in place of what is neither array nor object nor name stands its stamp.
		for i := 0; i < len(text); {
			switch c := text[i]; c {
			case '[', ']', '{', '}', ',':
				b = append(b, c)
				i++
				continue
			case '"':
				end := span.String(text, i)
				if end < len(text) && text[end] == ':' {
					b = append(b, text[i:end+1]...)
				} else {
					b = appendTimestamp(b, at)
				}
				i = end
				if i < len(text) && text[i] == ':' {
					i++
				}
			default:
				b = appendTimestamp(b, at)
				for i < len(text) && text[i] != ',' && text[i] != ']' && text[i] != '}' {
					i++
				}
			}
		}
		return b
	}
	return appendTimestamp(b, at)
}

func appendTimestamp(b []byte, at int64) []byte {
	return append(strconv.AppendInt(append(b, `{"timestamp":`...), at, 10), '}')
}
