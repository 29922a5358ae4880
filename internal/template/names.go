package template

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// Named is a name and what it stands for.
type Named struct{ Name, Digest string }

// Names lists the names in the store at dir without opening it: it makes,
// locks and repairs nothing. A store that does not exist has none.
func Names(dir string) ([]Named, error) {
	s := &Store{dir: filepath.Clean(dir)}
	names, err := s.names()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := make([]Named, len(names))
	for i, n := range names {
		list[i] = Named{n.name, n.digest}
	}
	return list, nil
}
