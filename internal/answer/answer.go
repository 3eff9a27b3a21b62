// Package answer is how naru answers over HTTP: JSON, and for what goes wrong the problem details of RFC 9457.
package answer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/naru-platform/naru/message"
)

// Problem is an error with an HTTP status, as RFC 9457 writes it.
type Problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Reason string `json:"reason,omitempty"` // the name of a message.Reason
	Code   string `json:"code,omitempty"`   // and its code
	// Line and Column say where in what was sent, from 1; zero where that is not known.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
}

// Error is the detail.
func (p *Problem) Error() string { return p.Detail }

// Bad is a request that must be asked differently.
func Bad(err error) error { return problem(http.StatusBadRequest, err.Error()) }

// Missing is something that is not there.
func Missing(format string, args ...any) error {
	return problem(http.StatusNotFound, fmt.Sprintf(format, args...))
}

// Conflict is a request that what is there does not allow.
func Conflict(format string, args ...any) error {
	return problem(http.StatusConflict, fmt.Sprintf(format, args...))
}

// Unavailable is something that may be there later.
func Unavailable(format string, args ...any) error {
	return problem(http.StatusServiceUnavailable, fmt.Sprintf(format, args...))
}

func problem(status int, detail string) *Problem {
	return &Problem{Status: status, Title: http.StatusText(status), Detail: detail}
}

// Func answers with what it returns, as JSON; a nil answer means that it has written one itself.
type Func func(w http.ResponseWriter, r *http.Request) (any, error)

// ServeHTTP calls f.
func (f Func) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v, err := f(w, r)
	if err != nil {
		Error(w, err)
		return
	}
	if v != nil {
		JSON(w, http.StatusOK, v)
	}
}

// JSON writes v.
func JSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client went; there is nobody to tell
}

// Error writes err as a problem; one that is none, and no rejection, is the server's own fault.
func Error(w http.ResponseWriter, err error) {
	var p *Problem
	var r *message.Rejection
	switch {
	case errors.As(err, &p):
	case errors.As(err, &r):
		p = problem(http.StatusUnprocessableEntity, r.Error())
		p.Reason, p.Code = r.Reason.String(), r.Reason.Code()
	default:
		p = problem(http.StatusInternalServerError, err.Error())
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
