//go:build !linux

package backendtest

import "testing"

// hostFree is not measured here: no backend stores anything on this system.
func hostFree(*testing.T, string) int64 { return 0 }
