//go:build !linux

package store

import (
	"errors"
	"os"
)

// allocate is not possible here.
func allocate(*os.File, int64, int64) error { return errors.ErrUnsupported }
