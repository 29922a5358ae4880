package main

import (
	"runtime/debug"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	sentryfilter "gvisor.dev/gvisor/runsc/boot/filter"
	goferfilter "gvisor.dev/gvisor/runsc/fsgofer/filter"
)

// Upstream compiles its seccomp programs when it builds runsc with Bazel, and
// looks them up by a key that says everything the program depends on. Its Go
// module comes without them, so every sentry and every gofer would compile
// their own: 10 ms of a start, and megabytes of heap that stay.
//
// These are the same programs from the same compiler, made by TestFilters,
// which also fails when they are not what this version of gVisor compiles.

//go:linkname sentryPrecompiled gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var sentryPrecompiled map[string]precompiledseccomp.Program

//go:linkname goferPrecompiled gvisor.dev/gvisor/runsc/fsgofer/filter.precompiledPrograms
var goferPrecompiled map[string]precompiledseccomp.Program

// useFilters registers the programs. Those compiled from another version of
// gVisor are left out, and gVisor compiles as usual.
func useFilters() {
	if filtersFrom != gvisorVersion() {
		return
	}
	sentryfilter.ListPrecompiled() // makes the maps, which stay
	goferfilter.ListPrecompiled()
	for _, p := range sentryFilters {
		sentryPrecompiled[p.Name] = p
	}
	for _, p := range goferFilters {
		goferPrecompiled[p.Name] = p
	}
}

// gvisorVersion is the version of gVisor linked into this program.
func gvisorVersion() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range bi.Deps {
		if m.Path == "gvisor.dev/gvisor" && m.Replace == nil {
			return m.Version
		}
	}
	return ""
}
