//go:build !linux

package node

import (
	"runtime"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
)

// hostChecks says what this system is for.
func hostChecks(*config.Config) []cli.Check {
	return []cli.Check{{Name: "system", Status: weak, Detail: runtime.GOOS + ": a client here, and the sim backend for tests; isolation needs Linux",
		Fix: "name a server on Linux in FIREBREAK_URL"}}
}
