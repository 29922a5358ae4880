//go:build !linux

package audit

import (
	"errors"
	"os"
	"time"
)

// dataFile is an *os.File: its Sync is the strongest this system offers.
type dataFile struct{ *os.File }

// Allocate implements file.
func (dataFile) Allocate(off, n int64) error { return errors.ErrUnsupported }

// bootID is not known here.
func bootID() (id [16]byte) { return id }

// sinceBoot is not known here.
func sinceBoot() time.Duration { return 0 }

// exchange is one step on Linux only.
func exchange(string, string) error { return errors.ErrUnsupported }
