//go:build !linux

package template

import (
	"io/fs"
	"os"
	"path/filepath"
)

// syncTree puts dir itself on stable storage. Templates are made on Linux only.
func syncTree(dir string) error { return syncDir(dir) }

// settle gives everything in root, with or without files, the modification time epoch.
func settle(root string, files bool) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink || d.Type().IsRegular() && !files {
			return err
		}
		return os.Chtimes(p, epoch, epoch)
	})
}
