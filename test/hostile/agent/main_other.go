//go:build !linux

// Command agent is for Linux guests only.
package main

func main() { panic("for Linux guests only") }
