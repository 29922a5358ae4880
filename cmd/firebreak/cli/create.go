package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
)

func (a *App) createCommand() *cobra.Command {
	var f makeFlags
	var name, language, hostname, key string
	var idle time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create [flags]",
		Short: "Make a sandbox that stays, and print its id",
		Long: `Create makes a sandbox and prints its id once code can run in it. It lives until
rm, its --timeout or its --idle-timeout, whichever comes first.`,
		Example: `  id=$(firebreak create --timeout 1h --memory 512MiB)
  firebreak exec $id -c 'print(6*7)'
  firebreak create --name build --idle-timeout 10m --template node`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := f.options(cmd, a.Lookup)
			if err != nil {
				return err
			}
			if o.Language, err = parseLanguage(language); err != nil {
				return err
			}
			o.Name, o.Hostname, o.IdempotencyKey = name, hostname, key
			o.Timeout = never(cmd.Flags().Changed("timeout"), f.timeout)
			o.IdleTimeout = never(cmd.Flags().Changed("idle-timeout"), idle)
			return a.withSession(cmd, func(s *session) error { return a.create(cmd, s, o, asJSON) })
		},
	}
	fs := cmd.Flags()
	f.add(fs, "end the sandbox this long after its creation; 0: never (default: the server's)")
	fs.StringVar(&name, "name", "", "name, unique among live sandboxes; good wherever an id is")
	fs.StringVarP(&language, "language", "l", "", "what exec -c runs: python, node or shell")
	fs.StringVar(&hostname, "hostname", "", "host name inside")
	fs.DurationVar(&idle, "idle-timeout", 0, "end the sandbox after this long unused; 0: never")
	fs.StringVar(&key, "idempotency-key", "", "a repeated create with the same key returns the same sandbox")
	fs.BoolVar(&asJSON, "json", false, "print the whole sandbox")
	return cmd
}

func (a *App) create(cmd *cobra.Command, s *session, o client.CreateOptions, asJSON bool) error {
	sb, err := s.Create(cmd.Context(), o)
	if err != nil {
		return err
	}
	if asJSON {
		return a.printSandbox(cmd, s, sb.ID())
	}
	_, err = fmt.Fprintln(a.Out, sb.ID())
	return err
}
