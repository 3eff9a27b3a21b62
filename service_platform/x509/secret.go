package x509

import (
	"fmt"
	"log/slog"
)

// Secret is a private key in PEM. Whatever prints it, prints that it is one; only string(s) and a slice of it give what
// is inside.
type Secret []byte

const redacted = "[private key]"

// String hides it.
func (Secret) String() string { return redacted }

// GoString hides it.
func (Secret) GoString() string { return redacted }

// Format hides it from every verb, %x and %d among them.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue hides it from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides it from encoders; whoever hands a key out says so by string(s).
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

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
