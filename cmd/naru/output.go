package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/naru-platform/naru/internal/when"
)

// options are the flags that every command has.
type options struct {
	data, server, token, output string
}

func (o *options) json() bool { return o.output == "json" }

// show prints a value as JSON where that was asked, else as f says.
func (o *options) show(w io.Writer, v any, f func(*printer)) error {
	if o.json() {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetIndent("", "  ")
		if err := e.Encode(v); err != nil {
			return err
		}
		_, err := w.Write(plainText(b.Bytes()))
		return err
	}
	p := &printer{w: w}
	f(p)
	return p.flush()
}

// plainText is JSON with <, > and & as they are: Go's encoder escapes them for HTML, in which none of this is.
func plainText(raw []byte) []byte {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' || i+1 == len(raw) {
			out = append(out, raw[i])
			continue
		}
		switch rest := string(raw[i+1 : min(i+6, len(raw))]); rest {
		case "u003c", "u003e", "u0026":
			n, _ := strconv.ParseUint(rest[1:], 16, 8) // one of these three
			out = append(out, byte(n))
			i += 5
		default:
			out = append(out, raw[i], raw[i+1])
			i++
		}
	}
	return out
}

// hint tells a person what to do next, on standard error: standard output has the thing itself, and may be a pipe. Who asks
// for JSON wants no hints.
func (o *options) hint(c *cobra.Command, format string, args ...any) {
	if !o.json() {
		fmt.Fprintln(c.ErrOrStderr(), printable(fmt.Sprintf(format, args...)))
	}
}

// listening tells who looks at a terminal what nothing is heard of yet.
func (o *options) listening(c *cobra.Command, to string) {
	if term.IsTerminal(int(os.Stderr.Fd())) {
		o.hint(c, "listening to %s, until Ctrl-C", to)
	}
}

// printer prints lines and tables for people.
type printer struct {
	w     io.Writer
	table *tabwriter.Writer
	cells bytes.Buffer // of the table, as it is laid out
	head  []string     // of a table that has no row yet
	none  string       // what is said of a table that gets none
	err   error
}

func (p *printer) line(format string, args ...any) {
	p.flushTable()
	_, err := io.WriteString(p.w, printable(fmt.Sprintf(format, args...))+"\n")
	p.note(err)
}

// printable is a text that does nothing to a terminal but be read: devices and clients choose names, topics and data, and
// could otherwise move the cursor, retitle the window, or turn the reading direction. Such characters are shown as Go
// writes them.
func printable(s string) string {
	if !strings.ContainsFunc(s, commands) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if commands(r) {
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func commands(r rune) bool {
	return r != '\n' && (unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control) || r == '\u2028' || r == '\u2029')
}

// columns begins a table with these columns. Where no row follows, none is printed in its place, if anything: what there is
// none of, and what to do.
func (p *printer) columns(none string, heading ...string) {
	p.flushTable()
	p.head, p.none = heading, none
}

// noneOf says that a list has nothing: where it was narrowed, that nothing matches, and else what to do.
func noneOf(what string, narrowed bool, next string) string {
	if narrowed {
		return "No " + what + " match."
	}
	return "No " + what + "; " + next + "."
}

// names prints a list behind what it is of, in as many lines as it needs; nothing where it is empty.
func (p *printer) names(of string, list []string) { p.wrap(of, ", ", list) }

// words prints a text behind what it is, in as many lines as it needs.
func (p *printer) words(of, text string) { p.wrap(of, " ", strings.Fields(text)) }

func (p *printer) wrap(of, between string, list []string) {
	const wide = 120
	line := of
	for i, name := range list {
		if i < len(list)-1 {
			name += between
		}
		if len(line) > len(of) && len(line)+len(strings.TrimRight(name, " ")) > wide {
			p.line("%s", strings.TrimRight(line, " "))
			line = strings.Repeat(" ", len(of))
		}
		line += name
	}
	if len(list) > 0 {
		p.line("%s", line)
	}
}

// row prints a line of a table; rows in a row share their columns.
func (p *printer) row(cells ...string) {
	if p.table == nil {
		p.table = tabwriter.NewWriter(&p.cells, 0, 8, 2, ' ', 0)
	}
	if head := p.head; head != nil {
		p.head = nil
		p.row(head...)
	}
	for _, c := range cells { // each has its tab, the last one too, or an empty one would not be in its column
		_, err := io.WriteString(p.table, strings.ReplaceAll(printable(c), "\n", " ")+"\t")
		p.note(err)
	}
	_, err := io.WriteString(p.table, "\n")
	p.note(err)
}

func (p *printer) flushTable() {
	if p.table != nil {
		p.note(p.table.Flush())
		p.table = nil
		for line := range strings.Lines(p.cells.String()) {
			_, err := io.WriteString(p.w, strings.TrimRight(line, " \n")+"\n")
			p.note(err)
		}
		p.cells.Reset()
	}
	if p.head != nil && p.none != "" {
		_, err := io.WriteString(p.w, printable(p.none)+"\n")
		p.note(err)
	}
	p.head = nil
}

func (p *printer) flush() error {
	p.flushTable()
	return p.err
}

func (p *printer) note(err error) {
	if p.err == nil {
		p.err = err
	}
}

func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := uint64(unit), 0
	for v := n / unit; v >= unit && exp < 4; v /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTP"[exp])
}

// ago is how long ago something was, in one unit.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return short(now.Sub(t)) + " ago"
}

func short(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%.0fm", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0fh", d.Hours())
	}
	return fmt.Sprintf("%.0fd", d.Hours()/24)
}

// took is how long something took or has waited, where it did at all.
func took(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return short(d)
}

// count is so many things, in the singular where it is one.
func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// inHours is a text as the platform reads it: a duration in days or weeks is written in hours, and anything else stays.
func inHours(s string) string {
	if d, ok := when.Duration(s); ok {
		return d.String()
	}
	return s
}

// exactly is a duration in full, without the units in which it has nothing: 30d, 24h, 1h30m.
func exactly(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= 2*day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// cut makes a text fit for one cell: one line, at most n characters, nothing that moves a terminal's cursor.
func cut(s string, n int) string {
	r := []rune(strings.Map(func(r rune) rune {
		if r == '\n' || commands(r) {
			return ' '
		}
		return r
	}, s))
	if len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return string(r)
}
