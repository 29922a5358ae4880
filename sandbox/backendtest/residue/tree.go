package residue

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// scanTree lists everything under the scope's directories, without following
// symbolic links.
func scanTree(scope Scope) ([]object, error) {
	var objs []object
	for _, dir := range scope.Dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil // went away while we looked
				}
				return err
			}
			if path == dir {
				return nil
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			if kept(scope.Keep, filepath.ToSlash(rel)) {
				if e.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			objs = append(objs, object{
				Finding: Finding{Kind: "file", Name: path, Detail: "under " + dir},
				key:     "file:" + path, ours: true,
			})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return objs, nil
}

func kept(keep []string, rel string) bool {
	for _, k := range keep {
		if rel == k || strings.HasPrefix(rel, k+"/") {
			return true
		}
	}
	return false
}

// scanTemporary lists the top of the directories where programs leave things.
func scanTemporary(scope Scope, m matcher, places ...string) []object {
	var objs []object
	for _, place := range places {
		entries, err := os.ReadDir(place)
		if err != nil {
			continue // absent on this system
		}
		for _, e := range entries {
			path := filepath.Join(place, e.Name())
			o := object{Finding: Finding{Kind: "file", Name: path}, key: "file:" + path, alien: true}
			if o.Detail = m.why("name", path); o.Detail != "" {
				o.ours = true
			} else if hasAnyPrefix(e.Name(), scope.Prefixes) {
				o.ours, o.Detail = true, "name has our prefix"
			}
			for _, d := range scope.Dirs {
				// The scope itself may live there.
				if d == path || strings.HasPrefix(d, path+string(filepath.Separator)) {
					o.ours, o.alien = false, false
				}
			}
			objs = append(objs, o)
		}
	}
	return objs
}
