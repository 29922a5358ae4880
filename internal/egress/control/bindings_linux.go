package control

import (
	"fmt"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
)

const (
	maxBindingText = 4 << 10 // bytes of a path, or of another text of a binding
	maxMethods     = 16
	maxTexts       = 64
)

// checkBindings holds bindings of one wire against what they may be in size. What
// else they have to be the router says.
func checkBindings(list []egress.Binding) error {
	if len(list) > inspect.MaxTargets {
		return fmt.Errorf("a sandbox has at most %d bindings", inspect.MaxTargets)
	}
	secrets := 0
	for i := range list {
		b := &list[i]
		secrets += len(b.Secret)
		texts := append([]string{b.Name, b.Host, b.Path, b.As, b.Field}, b.Methods...)
		if b.Git != nil {
			texts = append(append(texts, b.Git.Repo), b.Git.Push...)
		}
		if len(b.Methods) > maxMethods || len(texts) > maxTexts || slices.ContainsFunc(texts, func(s string) bool { return len(s) > maxBindingText }) {
			return fmt.Errorf("the binding %.64q has too many methods, or too long a text", b.Name)
		}
	}
	if secrets > inspect.MaxSecrets {
		return fmt.Errorf("the secrets of a sandbox's bindings are together longer than %d KiB", inspect.MaxSecrets>>10)
	}
	return nil
}

// cloneBindings is a copy with secrets of its own.
func cloneBindings(list []egress.Binding) []egress.Binding {
	out := slices.Clone(list)
	for i := range out {
		out[i].Methods = slices.Clone(out[i].Methods)
		out[i].Secret = slices.Clone(out[i].Secret)
		if g := out[i].Git; g != nil {
			out[i].Git = &egress.Git{Repo: g.Repo, Push: slices.Clone(g.Push)}
		}
	}
	return out
}

// wipe overwrites the secrets of bindings.
func wipe(list []egress.Binding) {
	for _, b := range list {
		clear(b.Secret)
	}
}
