// Package sysmon has the Go runtime's monitor thread sleep longer. Importing it is
// enough.
//
// The monitor looks after processors that are lost in a system call and goroutines
// that run for too long. It begins with naps of 20 µs, and each of them costs as much
// as it lasts where timers are a virtual machine's: a fifth of what starting a sandbox
// took. Linux may put off a thread's timers by some slack, of which it has 50 µs; here
// it gets more. All other threads, and with them all timers of programs, stay as exact
// as they were.
package sysmon
