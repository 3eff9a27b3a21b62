package shadow

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Error is why a request was refused: code and text of
// https://docs.aws.amazon.com/iot/latest/developerguide/device-shadow-error-messages.html.
type Error struct {
	Code    int
	Message string
	// Stated is the version that a request stated in vain; of a version conflict only.
	Stated uint64
	token  string // as JSON; empty for none
}

// Error gives both.
func (e *Error) Error() string { return fmt.Sprintf("%d %s", e.Code, e.Message) }

// Payload is the error response document. A client token is in it if the request was JSON and had a valid one.
func (e *Error) Payload(now time.Time) []byte {
	b := strconv.AppendInt([]byte(`{"code":`), int64(e.Code), 10)
	b = appendQuoted(append(b, `,"message":`...), e.Message)
	b = strconv.AppendInt(append(b, `,"timestamp":`...), now.Unix(), 10)
	return append(appendToken(b, e.token), '}')
}

func appendToken(b []byte, token string) []byte {
	if token == "" {
		return b
	}
	return append(append(b, `,"clientToken":`...), token...)
}

func bad(message string) *Error { return &Error{Code: http.StatusBadRequest, Message: message} }

func invalidNode(name string) *Error { return bad("State contains an invalid node: '" + name + "'") }

// tooDeep names the limit in force, in place of AWS's 6.
func tooDeep(l Limits) *Error {
	return bad(fmt.Sprintf("JSON contains too many levels of nesting; maximum is %d", l.Depth))
}

func missing(name string) *Error {
	return &Error{Code: http.StatusNotFound, Message: "No shadow exists with name: '" + name + "'"}
}

// TooLarge refuses a request beyond the limit.
func TooLarge() *Error {
	return &Error{Code: http.StatusRequestEntityTooLarge, Message: "The payload exceeds the maximum size allowed"}
}

func conflict(stated uint64) *Error {
	return &Error{Code: http.StatusConflict, Message: "Version conflict", Stated: stated}
}

func notUTF8() *Error {
	return &Error{Code: http.StatusUnsupportedMediaType, Message: "Unsupported documented encoding; supported encoding is UTF-8"}
}

// ThingNotFound refuses a request for a device that there is not.
func ThingNotFound() *Error { return &Error{Code: http.StatusNotFound, Message: "Thing not found"} }

// TooMany refuses to make one more shadow for a device. AWS has no such limit, and no such error.
func TooMany(most int) *Error { return bad(fmt.Sprintf("Too many shadows; maximum is %d", most)) }

// InvalidName refuses a shadow's name that CheckName does.
func InvalidName() *Error { return bad("Invalid shadow name") }

// CheckName says whether a shadow may have the name: 1 to 64 letters, digits and `:`, `_`, `-`, `$`, as AWS's API has it.
func CheckName(name string) bool {
	if name == "" || len(name) > NameMax {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case digit(c), 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == ':', c == '_', c == '-', c == '$':
		default:
			return false
		}
	}
	return true
}
