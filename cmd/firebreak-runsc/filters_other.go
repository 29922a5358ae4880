//go:build !amd64

package main

import "gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"

// Without programs for an architecture gVisor compiles them at every start.
const filtersFrom = ""

var sentryFilters, goferFilters []precompiledseccomp.Program
