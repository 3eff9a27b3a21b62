package x509

import (
	"fmt"
	"log/slog"
)

// Password is a passphrase or a token on its way in. Whatever prints it, prints that it is one.
type Password string

// String hides it.
func (Password) String() string { return hiddenPassword }

// GoString hides it.
func (Password) GoString() string { return hiddenPassword }

// Format hides it from every verb.
func (Password) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hiddenPassword)) }

// LogValue hides it from slog.
func (Password) LogValue() slog.Value { return slog.StringValue(hiddenPassword) }

// MarshalText hides it from encoders.
func (Password) MarshalText() ([]byte, error) { return []byte(hiddenPassword), nil }

const hiddenPassword = "[secret]"
