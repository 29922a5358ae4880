package policy

import (
	"embed"
	"io/fs"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

//go:embed presets/*.yaml
var presets embed.FS

// Presets are the names of the documents that are built in.
func Presets() (names []string) {
	files, err := fs.Glob(presets, "presets/*.yaml")
	if err != nil {
		panic(err) // a bad pattern
	}
	for _, f := range files {
		names = append(names, strings.TrimSuffix(strings.TrimPrefix(f, "presets/"), ".yaml"))
	}
	return names
}

// Preset returns a document that is built in. Errors: KindNotFound.
func Preset(name string) (*Document, error) {
	text, err := PresetText(name)
	if err != nil {
		return nil, err
	}
	return Parse("preset "+name, text)
}

// PresetText is a built-in document as it is written. Errors: KindNotFound.
func PresetText(name string) ([]byte, error) {
	if reName.MatchString(name) {
		if text, err := presets.ReadFile("presets/" + name + ".yaml"); err == nil {
			return text, nil
		}
	}
	return nil, sandbox.Errorf("policy", sandbox.KindNotFound, "there is no policy called %.80q", name).
		WithHint("built in are %s", strings.Join(Presets(), ", "))
}
