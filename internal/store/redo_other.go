//go:build !linux

package store

import "os"

// flushData flushes f.
func flushData(f *os.File) error { return f.Sync() }
