//go:build !unix

package store

import (
	"errors"
	"os"
)

// flock refuses: without a lock two daemons could own one directory.
func flock(*os.File) (taken bool, err error) {
	return false, errors.ErrUnsupported
}

// died cannot be told here.
func died(int) bool { return false }
