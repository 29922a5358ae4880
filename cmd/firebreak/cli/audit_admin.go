package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) auditKey() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the public key that logs are checked with",
		Long: `Key prints the public key of the data directory, or of the server that url or
FIREBREAK_URL names. Put it where whoever can change the log cannot change it.`,
		Example: "  firebreak audit key > /media/keys/audit.pub",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := a.publicKey(cmd.Context())
			if err != nil {
				return a.checked(err)
			}
			_, err = fmt.Fprintln(a.Out, key)
			return err
		},
	}
}

func (a *App) publicKey(ctx context.Context) (string, error) {
	if named, err := a.asks(); err != nil {
		return "", err
	} else if named {
		var answer struct {
			Key string `json:"public_key"`
		}
		err := a.withRemote(ctx, func(s *session) error {
			body, err := s.JSON(ctx, "/v1/audit/checkpoint", nil)
			if err == nil {
				err = json.Unmarshal(body, &answer)
			}
			return err
		})
		return answer.Key, err
	}
	c, err := a.config()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(filepath.Join(c.Data, "audit", "key.pub"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", sandbox.Errorf("audit key", sandbox.KindNotFound, "%s has no log yet", c.Data)
	}
	return strings.TrimSpace(string(b)), sandbox.Wrap("audit key", c.Data, err)
}

// operator is who acts on the data directory itself.
func operator() string { return fmt.Sprintf("uid:%d", os.Getuid()) }

func (a *App) logger() *slog.Logger { return slog.New(slog.NewTextHandler(a.Err, nil)) }

func (a *App) auditRotateKey() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate-key",
		Short: "Replace the key that signs the log, while the server is stopped",
		Long: `Rotate-key makes a new key, records the change, and has both keys sign it: whoever
has the old public key can follow. It prints the new one. Witnesses have to be told
(--log 'ORIGIN KEY').`,
		Example: "  firebreak audit rotate-key > /media/keys/audit.pub",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.logDir("server")
			if err == nil {
				_, err = os.Stat(dir)
			}
			if err != nil {
				return a.checked(sandbox.Wrap("audit rotate-key", dir, err))
			}
			l, err := audit.Open(dir, audit.Options{}, a.logger())
			if err != nil {
				return a.checked(err)
			}
			key, err := l.Rotate(cmd.Context(), operator())
			if err = errors.Join(err, l.Close()); err != nil {
				return a.checked(err)
			}
			_, err = fmt.Fprintln(a.Out, key)
			return err
		},
	}
}

func (a *App) auditAcknowledge() *cobra.Command {
	var log string
	cmd := &cobra.Command{
		Use:   "acknowledge",
		Short: "Begin a new log behind one that is not what was signed",
		Long: `Acknowledge is for a log with which the server refuses to start, because records that
were signed are missing or others. The directory is kept aside as it is; the first
record of the new log says what was signed, what was found, and who acknowledged it.
Find out first what happened: a backup may have the records.`,
		Example: "  firebreak audit verify; firebreak audit acknowledge",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := a.logDir(log)
			if err != nil {
				return err
			}
			aside, err := audit.Acknowledge(cmd.Context(), dir, operator(), audit.Options{}, a.logger())
			if err != nil {
				return a.checked(err)
			}
			_, err = fmt.Fprintln(a.Out, aside)
			return err
		},
	}
	cmd.Flags().StringVar(&log, "log", "server", logFlag)
	return cmd
}

func (a *App) auditWitness() *cobra.Command {
	var listen, file, name string
	var logs []string
	cmd := &cobra.Command{
		Use:   "witness --listen ADDR --key FILE --log KEY...",
		Short: "Cosign other machines' logs, as long as they only grow",
		Long: `Witness serves C2SP tlog-witness: it signs a checkpoint of a log only if the log
continues what it signed before, and remembers that in FILE.state. Run it where
whoever runs the log has no access. Put the printed line into audit_witness of the
log's firebreak.yaml, behind the address, and give the key to those who verify.

FILE is made with --name. --log takes the log's public key (or a file with it); once
that has changed, "ORIGIN KEY" for each later one.`,
		Example: "  firebreak audit witness --listen :7880 --key w.key --name w.example.org --log firebreak/1a2b3c4d+5e6f7a8b+AbCd…",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if listen == "" || file == "" || len(logs) == 0 {
				return sandbox.Errorf("", sandbox.KindInvalid, "--listen, --key and --log are needed").WithHint("`firebreak audit witness --help` shows how")
			}
			for i, l := range logs {
				if f := strings.Fields(l); len(f) == 1 {
					key, err := keyText(l)
					if err != nil {
						return err
					}
					logs[i] = key
				}
			}
			return a.checked(a.witness(cmd.Context(), listen, file, name, logs))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&listen, "listen", "", "address to serve on, such as :7880")
	fs.StringVar(&file, "key", "", "file with the witness's private key")
	fs.StringVar(&name, "name", "", "make the key, for a witness of this name, if there is none")
	fs.StringArrayVar(&logs, "log", nil, "public key of a log to cosign (repeatable)")
	return cmd
}

// witness serves until ctx ends.
func (a *App) witness(ctx context.Context, listen, file, name string, logs []string) (err error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if name == "" {
			return sandbox.Errorf("audit witness", sandbox.KindInvalid, "%s is not there", file).WithHint("--name makes it")
		}
		if _, err := audit.NewWitnessKey(file, name); err != nil {
			return err
		}
	}
	w, err := audit.OpenWitness(file, logs, a.logger())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return sandbox.Wrap("audit witness", listen, err)
	}
	srv := &http.Server{Handler: w, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	a.say("witnessing on http://%s", ln.Addr())
	if _, err := fmt.Fprintln(a.Out, w.PublicKey()); err != nil {
		return errors.Join(err, srv.Close(), <-done)
	}
	select {
	case err := <-done:
		return sandbox.Wrap("audit witness", listen, err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = srv.Shutdown(end)
	<-done
	return sandbox.Wrap("audit witness", listen, err)
}
