package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/gitsource"
)

// createFlags say what a sandbox that stays is like.
type createFlags struct {
	makeFlags
	name, language, hostname, action, expire, wake, from string
	idle                                                 time.Duration
}

func (f *createFlags) add(fs *pflag.FlagSet) {
	f.makeFlags.add(fs, "end the sandbox this long after its creation; 0: never (default: the server's)")
	fs.StringVar(&f.name, "name", "", "name, unique among live sandboxes; good wherever an id is")
	fs.StringVarP(&f.language, "language", "l", "", "what exec -c runs: python, node or shell")
	fs.StringVar(&f.hostname, "hostname", "", "host name inside")
	fs.DurationVar(&f.idle, "idle-timeout", 0, "end the sandbox after this long unused; 0: never")
	fs.StringVar(&f.action, "idle-action", "", "what happens then: destroy; event, which only says so; pause, until it is used again (default destroy)")
	fs.StringVar(&f.expire, "expire-action", "", "what happens after --timeout: destroy; pause, which keeps it for 30 days and starts its time again when it goes on (default destroy)")
	fs.StringVar(&f.wake, "wake", "", "what makes it go on when it is paused: use, whatever is wanted of it; resume, nothing else (default use)")
	fs.StringVar(&f.from, "from", "", "go on from this snapshot, by id or name: with its template, limits, files and programs")
}

// options checks the flags and turns them into a request.
func (f *createFlags) options(cmd *cobra.Command, lookup func(string) (string, bool)) (client.CreateOptions, error) {
	o, err := f.makeFlags.options(cmd, lookup)
	if err != nil {
		return o, err
	}
	o.Name, o.Hostname, o.IdleAction = f.name, f.hostname, f.action
	o.Snapshot, o.ExpireAction, o.Wake = f.from, f.expire, f.wake
	o.Timeout = never(cmd.Flags().Changed("timeout"), f.timeout)
	o.IdleTimeout = never(cmd.Flags().Changed("idle-timeout"), f.idle)
	o.Language, err = parseLanguage(f.language)
	return o, err
}

func (a *App) createCommand() *cobra.Command {
	var f createFlags
	var key string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make a sandbox that stays, and print its id",
		Long: `Create makes a sandbox and prints its id once code can run in it. It lives until
rm, its --timeout or its --idle-timeout, whichever comes first.

Without --allow, --policy or --binding it has no network device; firebreak network
shows and replaces what it may reach. What --binding names works as long as the
sandbox lives.

--git puts the files of a commit into the home, as run does; the sandbox's
labels git.repo, git.ref, git.commit and git.subpath say which.`,
		Example: `  id=$(firebreak create --timeout 1h --memory 512MiB)
  firebreak exec $id -c 'print(6*7)'
  firebreak create --name build --idle-timeout 10m --template node
  firebreak create --git ./project#v1.2:src
  firebreak create --git https://github.com/o/project.git#v1.2:src`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.prepare(cmd, &f, false, func(s *session, o client.CreateOptions, tree *gitsource.Tree) error {
				o.IdempotencyKey = key
				sb, err := a.create(cmd.Context(), s, o, tree)
				if err != nil {
					return err
				}
				if asJSON {
					return a.printSandbox(cmd, s, sb.ID(), sourceJSON(tree))
				}
				_, err = fmt.Fprintln(a.Out, sb.ID())
				return err
			})
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	a.configFlags(fs, "git_private")
	fs.StringVar(&key, "idempotency-key", "", "a repeated create with the same key returns the same sandbox")
	fs.BoolVar(&asJSON, "json", false, "print the whole sandbox")
	return cmd
}

// prepare reads the flags, and what they name here, and then calls make with a
// server; with one in this process, if local allows that.
func (a *App) prepare(cmd *cobra.Command, f *createFlags, local bool, make func(*session, client.CreateOptions, *gitsource.Tree) error) error {
	o, err := f.options(cmd, a.Lookup)
	if err != nil {
		return err
	}
	tree, err := a.gitTree(cmd, f.git, &o)
	if err != nil {
		return err
	}
	defer tree.Close()
	return a.with(cmd, local, func(s *session) error {
		if err := a.useImage(cmd.Context(), s, f.image, &o); err != nil {
			return err
		}
		return make(s, o, tree)
	})
}

// create makes a sandbox with the files of tree in it, or none.
func (a *App) create(ctx context.Context, s *session, o client.CreateOptions, tree *gitsource.Tree) (*client.Sandbox, error) {
	sb, err := s.Create(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := putTree(ctx, sb, tree); err != nil {
		if o.IdempotencyKey != "" {
			return nil, err // it may be older than this call, whose repetition goes on
		}
		return nil, errors.Join(err, remove(ctx, sb))
	}
	return sb, nil
}

// remove ends a sandbox that nobody else knows of, also when ctx has ended.
func remove(ctx context.Context, sb *client.Sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWait)
	defer cancel()
	_, err := sb.Destroy(ctx)
	return err
}
