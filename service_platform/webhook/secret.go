package webhook

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// secretPrefix is what a variable of the environment begins with that a header may be taken from: whoever may register a
// destination must not be able to send all of the environment there.
const secretPrefix = "NARU_SECRET_"

const secretMax = 8 << 10 // bytes

// secrets reads what headers have in files and in the environment. It is read with each call, so that it can be changed,
// and is never kept, shown or logged.
type secrets struct{ dir string }

// revealing are parts of header names whose values are secrets, which the table must not hold in clear.
var revealing = []string{"authorization", "cookie", "token", "secret", "password", "key", "signature"}

func (h *Header) valid() error {
	n := 0
	for _, there := range []bool{h.Value != "", h.File != "", h.Env != ""} {
		if there {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%s: want exactly one of value, file and env", h.Name)
	}
	if h.Value != "" {
		for _, part := range revealing {
			if strings.Contains(strings.ToLower(h.Name), part) {
				return fmt.Errorf("%s: its value would be seen by all who list destinations: put it into a file in secrets_dir and say file, or into the environment and say env", h.Name)
			}
		}
	}
	if h.Prefix != "" && h.Value != "" {
		return fmt.Errorf("%s: prefix is for file and env", h.Name)
	}
	if strings.ContainsFunc(h.Prefix, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("%s: its prefix has characters that no header has", h.Name)
	}
	if h.File != "" && (h.File != filepath.Base(h.File) || strings.HasPrefix(h.File, ".")) {
		return fmt.Errorf("%s: file %q: want the name of a file in secrets_dir, no path", h.Name, h.File)
	}
	if h.Env != "" && !strings.HasPrefix(h.Env, secretPrefix) {
		return fmt.Errorf("%s: env %q: want a variable whose name begins with %s", h.Name, h.Env, secretPrefix)
	}
	return nil
}

// of gives a header's value. Errors do not show it.
func (s secrets) of(h *Header) (string, error) {
	var v string
	switch {
	case h.Value != "":
		return h.Value, nil
	case h.Env != "":
		if v = os.Getenv(h.Env); v == "" {
			return "", fmt.Errorf("header %s: the environment has no %s", h.Name, h.Env)
		}
	case s.dir == "":
		return "", fmt.Errorf("header %s: no secrets_dir is configured for %s", h.Name, Name)
	default:
		info, err := os.Stat(filepath.Join(s.dir, h.File))
		if err == nil && info.Size() > secretMax {
			err = errors.New("it is too large")
		}
		var raw []byte
		if err == nil {
			raw, err = os.ReadFile(filepath.Join(s.dir, h.File))
		}
		if err != nil {
			return "", fmt.Errorf("header %s: %w", h.Name, err)
		}
		if v = strings.TrimSpace(string(raw)); v == "" {
			return "", fmt.Errorf("header %s: file %s is empty", h.Name, h.File)
		}
	}
	if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", fmt.Errorf("header %s: what it is taken from has control characters", h.Name)
	}
	return h.Prefix + v, nil
}
