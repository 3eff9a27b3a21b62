package sql

import (
	"fmt"
	"strconv"
	"time"
)

// The times that a rule may mean: years 1 to 9999.
const (
	epochMin = -62135596800000
	epochMax = 253402300799999
)

// formatTime is parse_time(pattern, milliseconds, zone).
func formatTime(e *env, c *call, a []value) value {
	fields, ok := e.pattern(c, a[0], jodaLetters)
	ms, isNumber := a[1].toDecimal()
	if !ok || !isNumber {
		return undefined
	}
	location := time.UTC
	if len(a) == 3 {
		name, ok := e.toText(a[2])
		if !ok {
			return undefined
		}
		e.work(zoneBytes)
		if location, ok = zone(string(name)); !ok {
			return undefined
		}
	}
	at := ms.round(0, towardZero).int()
	if at < epochMin || at > epochMax {
		return undefined
	}
	t := time.UnixMilli(at).In(location)
	out := make([]byte, 0, 32)
	for _, f := range fields {
		out = f.joda(out, t)
	}
	return textBytes(out)
}

// joda writes one field as Joda-Time's DateTimeFormat does.
func (f field) joda(dst []byte, t time.Time) []byte {
	padded := func(n int) []byte { return fmt.Appendf(dst, "%0*d", f.count, n) }
	year := func(n int) []byte {
		if f.count == 2 {
			return fmt.Appendf(dst, "%02d", n%100)
		}
		return padded(n)
	}
	switch f.letter {
	case 0:
		return append(dst, f.text...)
	case 'G':
		return append(dst, "AD"...)
	case 'C':
		return padded(t.Year() / 100)
	case 'y', 'Y':
		return year(t.Year())
	case 'x':
		y, _ := t.ISOWeek()
		return year(y)
	case 'w':
		_, w := t.ISOWeek()
		return padded(w)
	case 'e':
		return padded(isoWeekday(t))
	case 'E':
		return append(dst, name(t.Weekday().String(), f.count)...)
	case 'D':
		return padded(t.YearDay())
	case 'M':
		if f.count >= 3 {
			return append(dst, name(t.Month().String(), f.count)...)
		}
		return padded(int(t.Month()))
	case 'd':
		return padded(t.Day())
	case 'a':
		if t.Hour() < 12 {
			return append(dst, "AM"...)
		}
		return append(dst, "PM"...)
	case 'K':
		return padded(t.Hour() % 12)
	case 'h':
		return padded((t.Hour()+11)%12 + 1)
	case 'H':
		return padded(t.Hour())
	case 'k':
		return padded((t.Hour()+23)%24 + 1)
	case 'm':
		return padded(t.Minute())
	case 's':
		return padded(t.Second())
	case 'S':
		digits := fmt.Sprintf("%09d", t.Nanosecond())
		for len(digits) < f.count {
			digits += "0"
		}
		return append(dst, digits[:f.count]...)
	case 'z':
		short, offset := t.Zone()
		if short == "" || short[0] == '+' || short[0] == '-' || t.Location() != time.UTC && len(short) > 5 {
			return appendOffset(dst, offset, ":")
		}
		return append(dst, short...)
	}
	_, offset := t.Zone()
	switch f.count { // Z
	case 1:
		return appendOffset(dst, offset, "")
	case 2:
		return appendOffset(dst, offset, ":")
	}
	return append(dst, t.Location().String()...)
}

// name gives a name in full from four letters of pattern on, and its first three letters otherwise.
func name(full string, count int) string {
	if count >= 4 {
		return full
	}
	return full[:3]
}

func isoWeekday(t time.Time) int { return (int(t.Weekday())+6)%7 + 1 }

func appendOffset(dst []byte, seconds int, colon string) []byte {
	sign := byte('+')
	if seconds < 0 {
		sign, seconds = '-', -seconds
	}
	dst = append(dst, sign)
	dst = fmt.Appendf(dst, "%02d%s%02d", seconds/3600, colon, seconds/60%60)
	if s := seconds % 60; s != 0 {
		dst = append(append(dst, colon...), strconv.Itoa(s)...)
	}
	return dst
}
