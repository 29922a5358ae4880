//go:build !linux

package main

import "os"

func main() {
	os.Stderr.WriteString("firebreak-guest: runs inside a Linux sandbox only\n")
	os.Exit(1)
}
