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
	maxPlaceholder = 128
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
		if len(b.Placeholder) > maxPlaceholder || len(b.Inherited) > inspect.MaxInherited || slices.ContainsFunc(b.Inherited, func(p egress.Hidden) bool { return len(p) > maxPlaceholder }) {
			return fmt.Errorf("the placeholder of the binding %.64q is too long, or there are too many", b.Name)
		}
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
		out[i].Placeholder = slices.Clone(out[i].Placeholder)
		out[i].Inherited = slices.Clone(out[i].Inherited)
		for j, p := range out[i].Inherited {
			out[i].Inherited[j] = slices.Clone(p)
		}
		if g := out[i].Git; g != nil {
			out[i].Git = &egress.Git{Repo: g.Repo, Push: slices.Clone(g.Push)}
		}
	}
	return out
}

// wipe overwrites the secrets of bindings.
func wipe(list []egress.Binding) {
	for i := range list {
		list[i].Wipe()
	}
}

// The most a wire's transforms may be.
const (
	maxTransforms     = 64
	maxHeaders        = 32
	maxTransformText  = 8 << 10
	maxTransformBytes = 256 << 10
)

// checkTransforms holds transforms of one wire against what they may be in size.
func checkTransforms(list []egress.Transform) error {
	size := 0
	for i := range list {
		t := &list[i]
		size += len(t.Host)
		if len(t.Host) > maxBindingText || len(t.Headers) > maxHeaders || len(t.Secrets) > maxHeaders {
			return fmt.Errorf("the transform of %.64q has too many headers or secrets, or too long a host", t.Host)
		}
		for _, h := range t.Headers {
			if size += len(h.Name) + len(h.Value); len(h.Name) > maxBindingText || len(h.Value) > maxTransformText {
				return fmt.Errorf("the transform of %.64q has too long a header", t.Host)
			}
		}
		for _, s := range t.Secrets {
			size += len(s)
		}
	}
	if len(list) > maxTransforms || size > maxTransformBytes {
		return fmt.Errorf("a sandbox's transforms are at most %d, of %d KiB", maxTransforms, maxTransformBytes>>10)
	}
	return nil
}

// cloneTransforms is a copy with values of its own.
func cloneTransforms(list []egress.Transform) []egress.Transform {
	out := slices.Clone(list)
	for i := range out {
		out[i].Headers, out[i].Secrets = slices.Clone(out[i].Headers), slices.Clone(out[i].Secrets)
		for j := range out[i].Headers {
			out[i].Headers[j].Value = slices.Clone(out[i].Headers[j].Value)
		}
		for j := range out[i].Secrets {
			out[i].Secrets[j] = slices.Clone(out[i].Secrets[j])
		}
	}
	return out
}

// wipeTransforms overwrites what is hidden in transforms.
func wipeTransforms(list []egress.Transform) {
	for i := range list {
		list[i].Wipe()
	}
}
