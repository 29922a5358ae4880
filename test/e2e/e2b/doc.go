// Package e2b holds tests that drive the published packages of E2B, and of
// others that build on them, against the built program on real gVisor.
//
//	clients/   what is installed, pinned with digests and without hosts
//	js/ py/    the scripts; each prints a line per step
//
// The steps are the rows of the table in docs/guides/e2b.md.
package e2b
