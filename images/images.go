// Package images holds the recipes Firebreak builds root file systems from.
//
// A pack is a JSON file in packs/: which Debian packages it consists of, which
// of their dependencies are left out and why, and what is trimmed. The recipes
// are embedded, so a copied binary needs no files beside it:
//
//	b, err := images.Pack("python")
//
// internal/template reads them; packs/README.md explains every key.
package images

import (
	"embed"
	"io/fs"
)

//go:embed packs/*.json
var packs embed.FS

// Pack returns the recipe called name, or an error matching fs.ErrNotExist.
func Pack(name string) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, fs.ErrNotExist
	}
	return packs.ReadFile("packs/" + name + ".json")
}
