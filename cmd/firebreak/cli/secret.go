package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) secretCommand() *cobra.Command {
	return group("secret", "Keep secrets that sandboxes use and never see", a.secretSet(), a.secretLs(), a.secretRm())
}

// maxSecretInput is more than a secret may have, so that one that is too long is told
// of as such.
const maxSecretInput = 128 << 10

// secretFrom says where a secret's value is.
type secretFrom struct{ file, env, ref string }

func (a *App) secretSet() *cobra.Command {
	var from secretFrom
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Store a secret on the server; it is never shown again",
		Long: `Set stores a secret under NAME, in place of what was there: the one line of standard
input, without its end. At a terminal it asks, and shows nothing of what is typed. A
secret is never an argument, where history and other users would see it.

The server keeps it encrypted, and nothing gives it back: not the API, not the log. It
is for bindings, which say what it may be used for: firebreak binding add.

With --ref the server keeps none, and reads it where that points each time it is used:
env:VAR is a variable of the server, file:/PATH a file of its machine, and
vault:MOUNT/PATH#FIELD a field in a KV store (version 2) of OpenBao or HashiCorp Vault,
which the server's BAO_ADDR and BAO_TOKEN, or VAULT_ADDR and VAULT_TOKEN, lead to. Only
the operator's admins may say so.`,
		Example: `  pass show openai | firebreak secret set openai
  firebreak secret set github --from-file ~/.config/github-token
  firebreak secret set vault --ref file:/run/secrets/vault
  firebreak secret set mail --ref vault:secret/apps/mail#api-key`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setSecret(cmd, args[0], from)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&from.file, "from-file", "", "read the value from this file")
	fs.StringVar(&from.env, "from-env", "", "take the value from this variable")
	fs.StringVar(&from.ref, "ref", "", "keep no value: the server reads env:VAR, file:/PATH or vault:MOUNT/PATH#FIELD on each use")
	cmd.MarkFlagsMutuallyExclusive("from-file", "from-env", "ref")
	return cmd
}

func (a *App) setSecret(cmd *cobra.Command, name string, from secretFrom) error {
	value := ""
	if from.ref == "" {
		var err error
		if value, err = a.secretValue(cmd.Context(), name, from); err != nil {
			return err
		}
	}
	return a.withSession(cmd, func(s *session) (err error) {
		var kept *v1.Secret
		if from.ref != "" {
			kept, err = s.ReferSecret(cmd.Context(), name, from.ref)
		} else {
			kept, err = s.SetSecret(cmd.Context(), name, value)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.Out, "%s version %d\n", visible(kept.GetName()), kept.GetVersion())
		return sandbox.Wrap("print", "", err)
	})
}

// secretValue reads the value, one line, from where it is. Its errors hold nothing of
// it.
func (a *App) secretValue(ctx context.Context, name string, from secretFrom) (string, error) {
	var b []byte
	var err error
	switch {
	case from.env != "":
		v, ok := a.Lookup(from.env)
		if !ok {
			return "", sandbox.Errorf("--from-env", sandbox.KindInvalid, "there is no variable %.80q", from.env)
		}
		return v, notText("--from-env", v)
	case from.file != "":
		var f *os.File
		if f, err = os.Open(from.file); err == nil {
			defer f.Close()
			b, err = io.ReadAll(io.LimitReader(f, maxSecretInput))
		}
	case terminal(a.In):
		b, err = a.askSecret(ctx, name)
	default:
		b, err = io.ReadAll(io.LimitReader(a.In, maxSecretInput))
	}
	var typed *sandbox.Error
	if err != nil && !errors.As(err, &typed) {
		err = sandbox.Errorf("secret", sandbox.KindInvalid, "%w", err)
	}
	if err != nil {
		return "", err
	}
	v := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	return v, notText("secret", v)
}

func notText(op, v string) error {
	switch {
	case v == "":
		return sandbox.Errorf(op, sandbox.KindInvalid, "the secret is empty").WithHint("it is one line of standard input, of --from-file or of --from-env")
	case !utf8.ValidString(v):
		return sandbox.Errorf(op, sandbox.KindInvalid, "the secret is not text").WithHint("encode it as whoever takes it says, for instance in base64")
	}
	return nil
}

// maxTyped is what a terminal takes in one line; more is cut off, silently.
const maxTyped = 4000

// askSecret reads a line from the terminal, which shows nothing from before it asks
// until it is as it was.
func (a *App) askSecret(ctx context.Context, name string) ([]byte, error) {
	fd := int(a.In.(*os.File).Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	defer term.Restore(fd, state)
	t := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{a.In, a.Err}, "")
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() { // it ends with the line, or the process
		text, err := t.ReadPassword("secret " + visible(name) + " (not shown): ")
		read <- line{text, err}
	}()
	select {
	case l := <-read:
		switch {
		case errors.Is(l.err, io.EOF): // ^C, ^D
			return nil, sandbox.Errorf("secret", sandbox.KindCanceled, "nothing was stored")
		case len(l.text) >= maxTyped:
			return nil, sandbox.Errorf("secret", sandbox.KindInvalid, "the secret is too long to be typed").WithHint("give it with --from-file, or redirect standard input")
		}
		return []byte(l.text), l.err
	case <-ctx.Done():
		return nil, sandbox.Wrap("secret", "", ctx.Err())
	}
}

func (a *App) secretLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List secrets: names, never values", Args: cobra.NoArgs,
		Example: "  firebreak secret ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/secrets", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				list, err := s.Secrets(cmd.Context())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tVERSION\tCREATED\tSET\tBY\tREFERENCE")
				for _, k := range list {
					fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", visible(k.GetName()), k.GetVersion(), date(k.GetCreatedAt()), date(k.GetUpdatedAt()),
						visible(k.GetPrincipal()), visible(cmp.Or(k.GetReference(), "-")))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func (a *App) secretRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Forget secrets that no binding uses", Args: cobra.MinimumNArgs(1),
		Example: "  firebreak secret rm openai",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				return a.each(args, func(name string) error { return s.RemoveSecret(cmd.Context(), name) })
			})
		},
	}
}

// each does something about every name, says which were done, and tells all errors.
func (a *App) each(names []string, do func(string) error) error {
	var errs []error
	for _, name := range names {
		if err := do(name); err != nil {
			errs = append(errs, err)
		} else {
			fmt.Fprintln(a.Out, visible(name))
		}
	}
	return a.all(errs)
}
