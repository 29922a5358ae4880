// Command firebreak-runsc is gVisor's runsc reduced to the commands Firebreak
// uses.
//
// It is a program of its own, not a mode of bin/firebreak, because a sandbox
// start executes it four times (runtime, gofer, sentry, and for one umount):
// whatever else it linked would be paid for three times in start-up and once per
// sandbox in memory. bin/firebreak embeds it compressed and unpacks it once per version.
//
// The command table is built here rather than taken from runsc/cli/maincli,
// which would link a 47 MB helper for checkpoints to cloud storage.
package main

import (
	"os"

	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"

	"github.com/firebreak-dev/firebreak/cmd/firebreak-runsc/first"
	_ "github.com/firebreak-dev/firebreak/internal/sysmon"
)

func main() {
	first.Started(os.Args)
	haveFiles()
	useFilters()
	describeNoPoints()
	cli.Run(nil, map[util.SubCommand]string{
		new(cmd.Run):        "",
		new(cmd.Create):     "", // all of a sandbox but its guest, which comes of an image
		new(cmd.Checkpoint): "", // asks a sentry, over its control socket, to save itself
		new(cmd.Restore):    "", // is run with an image in place of a program

		// What these execute in turn. Everything else is done without runsc.
		new(boot):             "internal",
		new(cmd.Gofer):        "internal",
		new(sentrycmd.Umount): "internal",
	}, []subcommands.Command{})
}
