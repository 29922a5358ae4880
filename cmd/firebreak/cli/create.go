package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/gitsource"
)

func (a *App) createCommand() *cobra.Command {
	var f makeFlags
	var name, language, hostname, key, action string
	var idle time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make a sandbox that stays, and print its id",
		Long: `Create makes a sandbox and prints its id once code can run in it. It lives until
rm, its --timeout or its --idle-timeout, whichever comes first.

Without --allow or --policy it has no network device; firebreak network shows and
replaces what it may reach.

--git puts the files of a commit into the home, as run does; the sandbox's
labels git.repo, git.ref, git.commit and git.subpath say which.`,
		Example: `  id=$(firebreak create --timeout 1h --memory 512MiB)
  firebreak exec $id -c 'print(6*7)'
  firebreak create --name build --idle-timeout 10m --template node
  firebreak create --git ./project#v1.2:src
  firebreak create --git https://github.com/o/project.git#v1.2:src`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options(cmd, a.Lookup)
			if err != nil {
				return err
			}
			if o.Language, err = parseLanguage(language); err != nil {
				return err
			}
			o.Name, o.Hostname, o.IdempotencyKey, o.IdleAction = name, hostname, key, action
			o.Timeout = never(cmd.Flags().Changed("timeout"), f.timeout)
			o.IdleTimeout = never(cmd.Flags().Changed("idle-timeout"), idle)
			tree, err := a.gitTree(cmd, f.git, &o)
			if err != nil {
				return err
			}
			defer tree.Close()
			return a.withSession(cmd, func(s *session) error {
				if err := a.useImage(cmd.Context(), s, f.image, &o); err != nil {
					return err
				}
				return a.create(cmd, s, o, tree, asJSON)
			})
		},
	}
	fs := cmd.Flags()
	f.add(fs, "end the sandbox this long after its creation; 0: never (default: the server's)")
	a.configFlags(fs, "git_private")
	fs.StringVar(&name, "name", "", "name, unique among live sandboxes; good wherever an id is")
	fs.StringVarP(&language, "language", "l", "", "what exec -c runs: python, node or shell")
	fs.StringVar(&hostname, "hostname", "", "host name inside")
	fs.DurationVar(&idle, "idle-timeout", 0, "end the sandbox after this long unused; 0: never")
	fs.StringVar(&action, "idle-action", "", "what happens then: destroy, or event, which only says so (default destroy)")
	fs.StringVar(&key, "idempotency-key", "", "a repeated create with the same key returns the same sandbox")
	fs.BoolVar(&asJSON, "json", false, "print the whole sandbox")
	return cmd
}

func (a *App) create(cmd *cobra.Command, s *session, o client.CreateOptions, tree *gitsource.Tree, asJSON bool) error {
	sb, err := s.Create(cmd.Context(), o)
	if err != nil {
		return err
	}
	if err := putTree(cmd.Context(), sb, tree); err != nil {
		if o.IdempotencyKey != "" {
			return err // it may be older than this call, whose repetition goes on
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), destroyWait)
		defer cancel()
		_, derr := sb.Destroy(ctx)
		return errors.Join(err, derr)
	}
	if asJSON {
		return a.printSandbox(cmd, s, sb.ID())
	}
	_, err = fmt.Fprintln(a.Out, sb.ID())
	return err
}
