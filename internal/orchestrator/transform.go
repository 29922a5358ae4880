package orchestrator

import (
	"crypto/rand"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Transform sets headers of the requests to a host that a sandbox's policy lets
// pass, whatever the sandbox says in them. It is never changed.
type Transform struct {
	Host    string            `json:"host"` // a name, or *.NAME for all below it
	Headers []TransformHeader `json:"headers"`
}

// TransformHeader is a header that is set.
type TransformHeader struct {
	Name string `json:"name"`
	// Value refers to secrets of the tenant by their names; empty: it is in Sealed.
	Value string `json:"value,omitempty"`
	// Sealed is a value that refers to none, as whoever seals it keeps it.
	Sealed string `json:"sealed,omitempty"`
}

// SealedName is what values are sealed under, which is no name of a secret's.
const SealedName = "header of a transform"

// Bounds of one sandbox's transforms.
const (
	maxTransforms     = 64
	maxTransformBytes = 256 << 10
)

// checkTransforms refuses more than is kept with a sandbox.
func checkTransforms(op string, list []Transform) error {
	n := 0
	for _, t := range list {
		n += len(t.Host)
		for _, h := range t.Headers {
			n += len(h.Name) + len(h.Value) + len(h.Sealed)
		}
	}
	if len(list) > maxTransforms || n > maxTransformBytes {
		return sandbox.Errorf(op, sandbox.KindTooLarge, "the sandbox's transforms are %d and have %s", len(list), sandbox.FormatSize(int64(n))).
			WithHint("at most %d hosts and %s", maxTransforms, sandbox.FormatSize(maxTransformBytes))
	}
	return nil
}

// Placeholders begin so, and end with so many characters of base 62.
const (
	placeholderPrefix = "fbp_"
	placeholderLength = 40
	base62            = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// newPlaceholder is what stands for a secret in one sandbox and means nothing in
// any other.
func newPlaceholder() string {
	out := []byte(placeholderPrefix)
	for len(out) < len(placeholderPrefix)+placeholderLength {
		var b [64]byte
		_, _ = rand.Read(b[:]) // never fails
		for _, c := range b {
			if c < 248 && len(out) < len(placeholderPrefix)+placeholderLength { // 4 times 62: none is likelier
				out = append(out, base62[c%62])
			}
		}
	}
	return string(out)
}
