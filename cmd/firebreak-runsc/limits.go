package main

import "golang.org/x/sys/unix"

// files is how many descriptors a sentry and a gofer may have: with some
// hundred they do not even start.
const files = 1 << 16

// haveFiles lifts the limit on descriptors that we inherited from whoever
// started the server, whose own need is small. Without the privilege it stays
// as it is; a sandbox that cannot start with it says so.
func haveFiles() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Max < files {
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: files})
	}
}
