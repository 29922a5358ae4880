package policy

import (
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ValidName reports whether a policy can be kept under a name.
func ValidName(name string) bool { return reName.MatchString(name) }

// BuiltIn reports whether a name is that of a built-in policy.
func BuiltIn(name string) bool {
	_, err := PresetText(name)
	return err == nil
}

// Flatten returns documents that compile to what docs do, in the same order, and
// include nothing: whoever has them needs nobody's named documents any more, nor
// this version's built-in ones. A document that several include is there once.
// All have the one mode that docs have together. Errors: those of named,
// KindTooLarge.
func Flatten(named func(name string) (*Document, error), docs ...*Document) ([]*Document, error) {
	mode := ModeObserve
	for _, d := range docs {
		if d.Mode != ModeObserve {
			mode = ModeEnforce
		}
	}
	f := &flattener{named: named, mode: mode, seen: map[string]bool{}}
	for _, d := range docs {
		if err := f.add(d); err != nil {
			return nil, err
		}
	}
	return f.docs, nil
}

type flattener struct {
	named func(string) (*Document, error)
	mode  Mode
	seen  map[string]bool // included names
	docs  []*Document
}

func (f *flattener) add(d *Document) error {
	flat := *d
	flat.Mode, flat.Include = f.mode, nil
	f.docs = append(f.docs, &flat)
	for _, name := range d.Include {
		if f.seen[name] { // also the end of a circle
			continue
		}
		if f.seen[name] = true; len(f.seen) > maxIncludes {
			return sandbox.Errorf("policy", sandbox.KindTooLarge, "%s: more than %d policies are included", d.File, maxIncludes)
		}
		in, err := Preset(name)
		if sandbox.KindOf(err) == sandbox.KindNotFound {
			in, err = f.named(name)
		}
		if err != nil {
			return err
		}
		if err := f.add(in); err != nil {
			return err
		}
	}
	return nil
}
