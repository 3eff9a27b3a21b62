package authority

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
