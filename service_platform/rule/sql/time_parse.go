package sql

import (
	"strings"
	"time"
)

// timeToEpoch is time_to_epoch(text, pattern): milliseconds, in UTC where the text names no zone.
func timeToEpoch(e *env, c *call, a []value) value {
	s, ok := e.toText(a[0])
	fields, both := e.pattern(c, a[1], javaLetters)
	e.work(zoneBytes)
	if !ok || !both || len(s) > 256 {
		return undefined
	}
	r := reading{year: none, month: 1, day: 1, yearDay: none, hour: none, half: none, hour12: none, weekday: none, milliOfDay: none}
	rest, ok := r.fields(string(s), fields)
	if !ok || rest != "" {
		return undefined
	}
	at, ok := r.time()
	if !ok {
		return undefined
	}
	return number(whole(at.UnixMilli()), true)
}

// none marks what a text did not say.
const none = -1

// reading is what was read of a text.
type reading struct {
	year, month, day, yearDay          int
	hour, hour12, half, minute, second int
	nano, milliOfDay, weekday          int
	location                           *time.Location
}

// time puts the parts together; it is false where they make no time (31 February, or no year).
func (r *reading) time() (time.Time, bool) {
	if r.location == nil {
		r.location = time.UTC
	}
	hour := max(r.hour, 0)
	if r.hour12 != none {
		hour = r.hour12
		if r.half == 1 {
			hour += 12
		}
	}
	if r.year == none || r.year < 1 || r.year > 9999 || hour > 23 || r.minute > 59 || r.second > 59 {
		return time.Time{}, false
	}
	if r.yearDay != none {
		r.month, r.day = 1, r.yearDay
	}
	nano := r.nano
	second := r.second
	if r.milliOfDay != none {
		second, nano = r.milliOfDay/1000, r.milliOfDay%1000*1e6
	}
	t := time.Date(r.year, time.Month(r.month), r.day, hour, r.minute, second, nano, r.location)
	switch {
	case t.Year() != r.year, r.yearDay == none && (int(t.Month()) != r.month || t.Day() != r.day):
		return t, false
	case r.weekday != none && int(t.Weekday()) != r.weekday:
		return t, false
	}
	return t, true
}

// fields reads s by a pattern and gives what is left.
func (r *reading) fields(s string, fields []field) (rest string, ok bool) {
	for i, f := range fields {
		switch {
		case f.optional != nil:
			try := *r
			if rest, ok := try.fields(s, f.optional); ok {
				*r, s = try, rest
			}
			continue
		case f.letter == 0:
			if s, ok = strings.CutPrefix(s, f.text); !ok {
				return "", false
			}
			continue
		}
		adjacent := i+1 < len(fields) && fields[i+1].letter != 0 && numeric(fields[i+1])
		if s, ok = r.field(s, f, adjacent); !ok {
			return "", false
		}
	}
	return s, true
}

func numeric(f field) bool {
	return strings.IndexByte("uyDdKhHkmsSAn", f.letter) >= 0 || (f.letter == 'M' || f.letter == 'L') && f.count <= 2
}

// field reads one field. A count of one takes as many digits as there are; more take as many as their count.
func (r *reading) field(s string, f field, adjacent bool) (string, bool) {
	read := func(least, most, low, high int, into *int) (string, bool) {
		n, v := 0, 0
		for n < len(s) && n < most && isDigit(s[n]) {
			v = v*10 + int(s[n]-'0')
			n++
		}
		if n < least || v < low || v > high {
			return "", false
		}
		*into = v
		return s[n:], true
	}
	number := func(most, low, high int, into *int) (string, bool) {
		if f.count > 1 {
			return read(f.count, f.count, low, high, into)
		}
		if adjacent {
			most = 1
		}
		return read(1, most, low, high, into)
	}
	switch f.letter {
	case 'u', 'y':
		if f.count == 2 {
			rest, ok := read(2, 2, 0, 99, &r.year)
			r.year += 2000
			return rest, ok
		}
		return number(4, 1, 9999, &r.year)
	case 'M', 'L':
		if f.count >= 3 {
			for m := time.January; m <= time.December; m++ {
				if rest, ok := strings.CutPrefix(s, name(m.String(), f.count)); ok {
					r.month = int(m)
					return rest, true
				}
			}
			return "", false
		}
		return number(2, 1, 12, &r.month)
	case 'd':
		return number(2, 1, 31, &r.day)
	case 'D':
		return number(3, 1, 366, &r.yearDay)
	case 'E':
		for d := time.Sunday; d <= time.Saturday; d++ {
			if rest, ok := strings.CutPrefix(s, name(d.String(), f.count)); ok {
				r.weekday = int(d)
				return rest, true
			}
		}
		return "", false
	case 'G':
		return strings.CutPrefix(s, "AD")
	case 'a':
		for i, half := range [...]string{"AM", "PM"} {
			if rest, ok := strings.CutPrefix(s, half); ok {
				r.half = i
				return rest, true
			}
		}
		return "", false
	case 'H':
		return number(2, 0, 23, &r.hour)
	case 'k':
		rest, ok := number(2, 1, 24, &r.hour)
		r.hour %= 24
		return rest, ok
	case 'K':
		return number(2, 0, 11, &r.hour12)
	case 'h':
		rest, ok := number(2, 1, 12, &r.hour12)
		r.hour12 %= 12
		return rest, ok
	case 'm':
		return number(2, 0, 59, &r.minute)
	case 's':
		return number(2, 0, 59, &r.second)
	case 'S':
		if f.count > 9 {
			return "", false
		}
		rest, ok := read(f.count, f.count, 0, 999999999, &r.nano)
		r.nano *= int(pow10[9-f.count])
		return rest, ok
	case 'n':
		return number(9, 0, 999999999, &r.nano)
	case 'A':
		return number(8, 0, 86399999, &r.milliOfDay)
	case 'V', 'z', 'O', 'X', 'x', 'Z':
		return r.zone(s, f)
	}
	return "", false
}

// zone reads a zone: X and x and Z are offsets, O is GMT and an offset, V and z are any of these or a name.
func (r *reading) zone(s string, f field) (string, bool) {
	offset := func(s string) (string, bool) {
		seconds, n := readOffset(s)
		if n == 0 {
			return "", false
		}
		r.location = time.FixedZone("", seconds)
		return s[n:], true
	}
	switch f.letter {
	case 'X', 'x', 'Z':
		if rest, ok := strings.CutPrefix(s, "Z"); ok && (f.letter == 'X' || f.letter == 'Z' && f.count == 5) {
			r.location = time.UTC
			return rest, true
		}
		if f.letter == 'Z' && f.count == 4 {
			s = strings.TrimPrefix(s, "GMT")
		}
		return offset(s)
	case 'O':
		rest, ok := strings.CutPrefix(s, "GMT")
		if !ok {
			return "", false
		}
		if rest == "" || rest[0] != '+' && rest[0] != '-' {
			r.location = time.UTC
			return rest, true
		}
		return offset(rest)
	}
	n := 0
	for n < len(s) && (isDigit(s[n]) || s[n] >= 'A' && s[n] <= 'Z' || s[n] >= 'a' && s[n] <= 'z' || strings.IndexByte("/_+-:", s[n]) >= 0) {
		n++
	}
	var ok bool
	r.location, ok = zone(s[:n])
	return s[n:], ok
}
