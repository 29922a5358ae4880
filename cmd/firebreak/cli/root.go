package cli

import (
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// root builds the command tree.
func (a *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "firebreak",
		Short: "Run code that nobody reviewed, so that it cannot hurt this machine",
		Long: `Firebreak runs untrusted code in a sandbox with its own kernel, no network
(unless --allow or --policy names what it may reach) and hard limits, shows what it prints, and proves that nothing of it is left.

Commands talk to the server in FIREBREAK_URL (with FIREBREAK_API_KEY), else to
the one on the local socket. Without either, run and demo start what they need
in this process and leave nothing running.`,
		Example: `  firebreak run -c 'print(6*7)'
  firebreak run --memory 64MiB --timeout 10s job.py --its-own-flag
  firebreak serve`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().StringVar(&a.file, "config", "", "configuration file instead of firebreak.yaml")
	a.configFlags(root.PersistentFlags(), "data", "url")
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run code:"},
		&cobra.Group{ID: "sandbox", Title: "Sandboxes that stay (these need a server):"},
		&cobra.Group{ID: "admin", Title: "Set up and look after:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("run", a.runCommand(), a.demoCommand())
	add("sandbox", a.createCommand(), a.execCommand(), a.evalCommand(), a.contextCommand(), a.shellCommand(), a.psCommand(), a.attachCommand(), a.killCommand(), a.cpCommand(), a.watchCommand(), a.lsCommand(), a.inspectCommand(), a.statsCommand(),
		a.pauseCommand(), a.resumeCommand(), a.snapshotCommand(), a.forkCommand(), a.networkCommand(), a.portForwardCommand(), a.logsCommand(), a.eventsCommand(), a.rmCommand())
	add("admin", a.serveCommand(), a.doctorCommand(), a.auditCommand(), a.templateCommand(), a.policyCommand(), a.secretCommand(), a.bindingCommand(), a.keyCommand(), a.quotaCommand(), a.poolCommand(), a.configCommand(), a.versionCommand(),
		a.backupCommand(), a.restoreCommand(), a.uninstallCommand(), a.routerCommand())
	root.SetHelpCommandGroupID("admin")
	root.SetCompletionCommandGroupID("admin")
	return root
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return sandbox.Errorf("", sandbox.KindInvalid, "%s has no command %q", cmd.CommandPath(), args[0]).
				WithHint("`%s --help` lists them", cmd.CommandPath())
		},
	}
	c.AddCommand(subs...)
	return c
}

// withSession runs f with a server, which the command needs.
func (a *App) withSession(cmd *cobra.Command, f func(*session) error) error {
	return a.with(cmd, false, f)
}

// with runs f with a server, or with one in this process if local is allowed.
func (a *App) with(cmd *cobra.Command, local bool, f func(*session) error) (err error) {
	connect := a.connect
	if local {
		connect = a.connectOrLocal
	}
	s, err := connect(cmd.Context())
	if err != nil {
		return err
	}
	defer func() {
		if cerr := s.close(); err == nil {
			err = cerr
		}
	}()
	return f(s)
}
