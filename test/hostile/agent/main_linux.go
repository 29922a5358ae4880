// Command agent is firebreak-guest with chaos in it: it stands in for the agent
// in every sandbox of a `firebreak` that the tests build, see package chaos.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/test/hostile/chaos"
)

func main() {
	if runtime.GOMAXPROCS(0) < 2 {
		runtime.GOMAXPROCS(2)
	}
	var err error
	switch {
	case os.Getpid() == 1 && os.Args[0] == "/init":
		machine.Boot()
	case len(os.Args) > 1 && os.Args[1] == "enter":
		err = machine.Enter(os.Args[2:])
	case len(os.Args) > 1 && os.Args[1] == "init":
		err = serve()
	default:
		os.Exit(2)
	}
	if err != nil {
		os.Stderr.WriteString("chaos agent: " + err.Error() + "\n")
		os.Exit(1)
	}
}

func serve() error {
	sys, err := agent.NewLinux()
	if err != nil {
		return err
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGABRT, syscall.SIGPIPE)
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	conn := chaos.Wrap(agent.Stdio())
	conn.Boot(hostname)
	return agent.New(chaos.System(sys, conn), "chaos").Serve(context.Background(), conn)
}
