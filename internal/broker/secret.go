package broker

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
)

// redacted is what a Secret is in every format.
const redacted = "[redacted]"

// errSecret is why a Secret is not written down.
var errSecret = errors.New("a secret is not written down")

// Secret is the plaintext of a secret. It cannot be printed, logged, marshalled,
// compared or found by walking values. The zero value is empty. Methods may be
// called at once.
type Secret struct {
	mu sync.Mutex
	// bytes returns the plaintext. It is a function because whatever walks values
	// does not look into one. nil once destroyed; guarded by mu.
	bytes func() []byte
}

// NewSecret takes b over: the caller keeps no copy.
func NewSecret(b []byte) *Secret { return &Secret{bytes: func() []byte { return b }} }

// Use calls f with the bytes, which are f's until it returns and no longer. After
// Destroy there are none. f calls no method of s.
func (s *Secret) Use(f func(b []byte)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes == nil {
		f(nil)
		return
	}
	f(s.bytes())
}

// Destroy overwrites the bytes. Idempotent.
func (s *Secret) Destroy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes != nil {
		clear(s.bytes())
	}
	s.bytes = nil
}

// String implements fmt.Stringer.
func (s *Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (s *Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, for the verbs that look through a String.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue implements slog.LogValuer.
func (s *Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON implements json.Marshaler: what would be written is worth nothing, so
// it is an error instead.
func (s *Secret) MarshalJSON() ([]byte, error) { return nil, errSecret }

// MarshalText implements encoding.TextMarshaler.
func (s *Secret) MarshalText() ([]byte, error) { return nil, errSecret }

// MarshalBinary implements encoding.BinaryMarshaler, and gob's.
func (s *Secret) MarshalBinary() ([]byte, error) { return nil, errSecret }
