//go:build !linux

package template

import (
	"context"
	"runtime"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func (b *builder) download(context.Context) ([]string, error) {
	return nil, sandbox.Errorf("template build", sandbox.KindUnavailable, "packs are built on Debian only, this is %s", runtime.GOOS).
		WithHint("build on a Debian machine")
}

func (b *builder) unpack(context.Context, []string) error { return nil }
func (b *builder) setUp(context.Context) error            { return nil }
func checkLibraries(string) error                         { return nil }
