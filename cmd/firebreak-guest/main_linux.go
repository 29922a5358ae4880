// Command firebreak-guest is what runs inside a sandbox: PID 1 and agent.
//
//	firebreak-guest init [-freeze]      serve the host on standard input and output
//	firebreak-guest probe VERB ARG...   a verb of the conformance suite
//	firebreak-guest version
//
// With -freeze it never answers, for tests of what the host does then.
package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/internal/guest/probe"
)

// version is set by the linker.
var version = "dev"

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	switch os.Args[1] {
	case "init":
		if len(os.Args) > 2 && os.Args[2] == "-freeze" {
			for { // select {} would be found out as a deadlock
				time.Sleep(time.Hour)
			}
		}
		os.Exit(serve())
	case "probe":
		os.Exit(probe.Main(os.Args[2:]))
	case "version":
		os.Stdout.WriteString(version + "\n")
	default:
		usage()
	}
}

func usage() {
	os.Stderr.WriteString("usage: firebreak-guest init [-freeze] | probe VERB ARG... | version\n")
	os.Exit(2)
}

// serve is the agent. It returns only when the stream to the host has failed
// for good, which ends the sandbox.
func serve() int {
	// Small and quick to give memory back: it idles in every sandbox.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(16 << 20)
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2) // one may be blocked reading the stream
	}
	sys, err := agent.NewLinux()
	if err != nil {
		return boot(err)
	}
	srv := agent.New(sys, version)
	if err := srv.Serve(context.Background(), agent.Stdio()); err != nil {
		return boot(err)
	}
	return 0
}

// boot is the boot log: standard error, for whoever debugs a template.
func boot(err error) int {
	os.Stderr.WriteString("firebreak-guest: " + err.Error() + "\n")
	return 1
}
