package sql

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Error says where a statement or template is wrong. Line and Column count from 1; Column counts characters.
type Error struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Want   string `json:"want"`             // what would have been right there
	Got    string `json:"got"`              // what stands there
	Remedy string `json:"remedy,omitempty"` // what to do instead, where there is something to say
}

func (e *Error) Error() string {
	text := fmt.Sprintf("sql: line %d, column %d: want %s, got %s", e.Line, e.Column, e.Want, e.Got)
	if e.Remedy != "" {
		text += "; " + e.Remedy
	}
	return text
}

// place is a part of the text, in bytes.
type place struct{ from, to int }

func (p place) where() place { return p }

// lineColumn tells a place as people count.
func lineColumn(text string, at int) (line, column int) {
	before := text[:min(at, len(text))]
	line = 1 + strings.Count(before, "\n")
	return line, 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
}

func fault(text string, at int, want, got, remedy string) *Error {
	line, column := lineColumn(text, at)
	return &Error{Line: line, Column: column, Want: want, Got: got, Remedy: remedy}
}
