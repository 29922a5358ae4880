//go:build !linux

package audit

import "os"

// dataFile is an *os.File: its Sync is the strongest this system offers.
type dataFile struct{ *os.File }
