//go:build !race

package backendtest

// race is set under the race detector, which makes copying an order slower.
const race = false
