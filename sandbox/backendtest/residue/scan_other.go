//go:build !linux

package residue

import "os"

// scan looks at files only: this system offers nothing like /proc.
func scan(scope Scope, m matcher) ([]object, error) {
	objs, err := scanTree(scope)
	if err != nil {
		return nil, err
	}
	return append(objs, scanTemporary(scope, m, os.TempDir())...), nil
}
