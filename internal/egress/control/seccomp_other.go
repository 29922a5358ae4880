//go:build linux && !amd64 && !arm64

package control

import "errors"

// filter refuses: the list of system calls is of other architectures.
func filter() error { return errors.New("there is no list of system calls for this architecture") }
