package broker

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// BenchmarkSeal and BenchmarkGet are what a secret costs to set and to use.
func BenchmarkSeal(b *testing.B) {
	k := New(filepath.Join(b.TempDir(), "secrets"), nil)
	for b.Loop() {
		if _, err := k.Seal("acme", "token", NewSecret([]byte(canary))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	var sealed string
	k := New(filepath.Join(b.TempDir(), "secrets"), func(context.Context, sandbox.TenantID, string) (Kept, error) { return Kept{Sealed: sealed}, nil })
	var err error
	if sealed, err = k.Seal("acme", "token", NewSecret([]byte(canary))); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := k.Get(b.Context(), "acme", "token")
		if err != nil {
			b.Fatal(err)
		}
		s.Destroy()
	}
}
