//go:build !linux

package template

import (
	"io/fs"
	"os"
	"path/filepath"
)

// syncTree puts dir itself on stable storage. Templates are made on Linux only.
func syncTree(dir string) error { return syncDir(dir) }

// settle gives everything in root the modification time epoch.
func settle(root string) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		return os.Chtimes(p, epoch, epoch)
	})
}
