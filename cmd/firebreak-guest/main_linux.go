// Command firebreak-guest is what runs inside a sandbox: PID 1 and agent.
//
//	firebreak-guest init [-freeze]      serve the host on standard input and output
//	/init                               PID 1 of a virtual machine, which starts the agent by
//	firebreak-guest enter ARG...        entering namespaces of its own, then init ARG...
//	firebreak-guest probe VERB ARG...   a verb of the conformance suite
//	firebreak-guest version
//
// With -freeze it never answers, for tests of what the host does then.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/guest/probe"
)

// version is set by the linker.
var version = "dev"

func main() {
	if os.Getpid() == 1 && os.Args[0] == "/init" {
		machine.Boot()
	}
	if len(os.Args) < 2 {
		usage()
	}
	switch os.Args[1] {
	case "init":
		os.Exit(initialise(os.Args[2:]))
	case "enter":
		os.Exit(boot(machine.Enter(os.Args[2:])))
	case "probe":
		os.Exit(probe.Main(os.Args[2:]))
	case "version":
		os.Stdout.WriteString(version + "\n")
	default:
		usage()
	}
}

func usage() {
	os.Stderr.WriteString("usage: firebreak-guest init [-freeze] | enter ARG... | probe VERB ARG... | version\n")
	os.Exit(2)
}

// initialise is PID 1 of a sandbox.
func initialise(args []string) int {
	switch {
	case len(args) == 1 && args[0] == "-freeze":
		for { // select {} would be found out as a deadlock
			time.Sleep(time.Hour)
		}
	case len(args) > 0:
		usage()
	}
	return serve(func(srv *agent.Server) error { return srv.Serve(context.Background(), agent.Stdio()) })
}

// serve is the agent. It returns only when the stream to the host has failed
// for good, which ends the sandbox.
func serve(on func(*agent.Server) error) int {
	// Small and quick to give memory back: it idles in every sandbox.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(16 << 20)
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2) // one may be in a call that takes its time, such as fork
	}
	sys, err := agent.NewLinux()
	if err != nil {
		return boot(err)
	}
	// Not ignored, which programs would inherit: received and dropped. Root
	// inside may send them, and a host that dies may leave a broken pipe.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGABRT, syscall.SIGPIPE)
	srv := agent.New(sys, version)
	srv.Idle = giveBack
	if err := on(srv); err != nil {
		return boot(err)
	}
	return 0
}

// giveBack returns what work has left in the heap to the system, if it was much.
func giveBack() {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.TotalAlloc-givenBack > 512<<10 {
		givenBack = m.TotalAlloc
		debug.FreeOSMemory()
	}
}

// givenBack is the heap's total when giveBack last did something; giveBack is
// called by one timer only.
var givenBack uint64

// boot is the boot log: standard error, for whoever debugs a template.
func boot(err error) int {
	os.Stderr.WriteString("firebreak-guest: " + err.Error() + "\n")
	return 1
}
