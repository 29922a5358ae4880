// Command runsc is the peer of the benches: gVisor's own runtime at the version
// Firebreak embeds, with the command set of upstream's runsc that a person
// would use by hand.
//
// Only the helper for checkpoints to cloud storage is left out, 47 MB that
// upstream links and that no bench uses; leaving it out makes the peer faster.
package main

import (
	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

func main() {
	cli.Run(nil, map[util.SubCommand]string{
		new(cmd.Run): "", new(cmd.Create): "", new(cmd.Start): "", new(cmd.Exec): "", new(cmd.Kill): "",
		new(cmd.Delete): "", new(cmd.State): "", new(cmd.Wait): "", new(cmd.List): "",
		new(sentrycmd.Boot): "internal", new(sentrycmd.Umount): "internal", new(cmd.Gofer): "internal",
	}, []subcommands.Command{})
}
