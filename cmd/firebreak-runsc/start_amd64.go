package main

// start is the entry point of the linked program (-ldflags "-E main.start"). In
// sentry and gofer it reduces the capability bounding set to what they keep
// for good, and goes on to the Go runtime.
//
// They do so themselves, but by then they have several threads: one system
// call becomes a stop of the world, for each of 35 capabilities, and a fifth
// of a sandbox's start. Here there is one thread and it takes microseconds. It
// is also earlier: nothing in Go ever runs with the full set. A program linked
// without the flag works the same, slower.
//
// The sets are those of the only configuration internal/backend/gvisor uses:
// systrap, directfs, no host network. Its tests compare the result with what
// gVisor does alone.
func start()
