// Command firebreak runs code that nobody reviewed: run, serve, and everything
// around them. `firebreak --help` says more.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/node"
	_ "github.com/firebreak-dev/firebreak/internal/sysmon"
)

// Set by the linker; see the Makefile.
var (
	version  = "devel"
	revision = ""
)

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	b := build()
	w := node.Wiring{Build: b}
	app := &cli.App{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Lookup: os.LookupEnv, Root: os.Geteuid() == 0, Build: b,
		Local: w.Local, Serve: w.Serve, Examine: w.Examine, Uninstall: w.Uninstall, Backup: w.Backup, Restore: w.Restore, Receipt: w.Receipt, Router: w.Router,
	}
	ctx, stop := withSignals(app.Abandon)
	defer stop()
	defer app.Abandon() // also when it panics
	return app.Execute(ctx, args)
}

// withSignals returns a context that the first signal ends. The second ends the
// process: whoever presses Ctrl-C twice does not want to wait for cleaning up;
// what is left is reaped by the next run. abandon is called before that.
func withSignals(abandon func()) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// A closed pipe is an error of the write, not the end of the process: there
	// is a sandbox to remove.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	done := make(chan struct{})
	go func() { // ends with done, or with the process
		select {
		case s := <-signals:
			cancel(cli.Interrupted(s))
		case <-done:
			return
		}
		select {
		case s := <-signals:
			abandon()
			os.Exit(128 + int(s.(syscall.Signal)))
		case <-done:
		}
	}()
	return ctx, func() {
		close(done)
		signal.Stop(signals)
		cancel(nil)
	}
}

// build describes this program, from the linker's flags or else from what the
// go command recorded.
func build() cli.Build {
	b := cli.Build{Version: version, Revision: revision, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && b.Revision == "" && len(s.Value) >= 12 {
			b.Revision = s.Value[:12]
		}
	}
	return b
}
