//go:build !linux

package node

// heedMemory has no limit to find here.
func heedMemory() {}

// forgetImage does nothing here.
func forgetImage() {}
