package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// BackupOptions says where a backup goes.
type BackupOptions struct {
	File     string    // "-": To
	To       io.Writer // for "-"
	Force    bool
	Progress func(done, total int64)
}

// RestoreOptions says where a backup comes from.
type RestoreOptions struct {
	File     string    // "-": From
	From     io.Reader // for "-"
	Progress func(done, total int64)
}

// Restored is what a restore did.
type Restored struct {
	Data      string
	Made      time.Time
	Lost      int // sandboxes that were alive when the backup was made
	Sealed    int // secrets whose key is in no backup
	Templates []string
}

func (a *App) backupCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Copy records, evidence and results into one file, also while a server runs",
		Long: `Backup writes what the data directory holds and cannot be made again: records, the
hashes of API keys, the audit log, what sandboxes printed and runs left behind. It
needs the data directory, not the server, which may go on working. The file is
readable by its owner only and appears when it is complete; "-" is standard output.

Not in it: programs, templates, sandboxes that are alive, and two files: api-key, which
is a secret (all keys work after a restore without it), and secrets/key, which opens
the secrets of firebreak secret set. Those are in the backup encrypted: keep a copy of
secrets/key elsewhere, or set them again after a restore.`,
		Example: "  firebreak backup /backups/firebreak-$(date +%F).fbk\n  firebreak backup - | ssh elsewhere 'cat > firebreak.fbk'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			switch {
			case a.Backup == nil:
				return sandbox.Errorf("backup", sandbox.KindUnsupported, "there is never anything to back up on this system")
			case args[0] == "-" && terminal(a.Out):
				return sandbox.Errorf("backup", sandbox.KindInvalid, "a backup is nothing for a terminal").WithHint("name a file, or redirect the output")
			}
			tell, done := a.transfer("backing up")
			err = a.Backup(cmd.Context(), c, BackupOptions{File: args[0], To: a.Out, Force: force, Progress: tell})
			done()
			return err
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace an existing file")
	return cmd
}

func (a *App) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE|-",
		Short: "Make a data directory from a backup",
		Long: `Restore makes the data directory (--data) from a backup. The directory must not
exist or be empty: nothing is ever merged. It appears when every byte was checked,
the database migrated and the audit log verified, or not at all.

Sandboxes that were alive when the backup was made are recorded as lost; those of
the server it was made from are not touched, even on the same machine.`,
		Example: "  firebreak restore /backups/firebreak-2026-01-02.fbk\n  firebreak restore --data /srv/firebreak - < firebreak.fbk",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			if a.Restore == nil {
				return sandbox.Errorf("restore", sandbox.KindUnsupported, "nothing can be restored on this system")
			}
			tell, done := a.transfer("restoring")
			r, err := a.Restore(cmd.Context(), c, RestoreOptions{File: args[0], From: a.In, Progress: tell})
			done()
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "restored %s as of %s\n", r.Data, r.Made.Format(time.RFC3339))
			if r.Lost > 0 {
				fmt.Fprintf(a.Out, "%d sandboxes were alive then and are recorded as lost\n", r.Lost)
			}
			if r.Sealed > 0 {
				fmt.Fprintf(a.Out, "not in a backup, to be put back: secrets/key, which opens %s\n", count(r.Sealed, "secret"))
			}
			for _, t := range r.Templates {
				fmt.Fprintf(a.Out, "not in a backup, to be made again: template %s\n", visible(t))
			}
			return nil
		},
	}
}

// transfer shows on a terminal how far something is. done ends the line.
func (a *App) transfer(what string) (tell func(done, total int64), done func()) {
	if !terminal(a.Err) {
		return nil, func() {}
	}
	var last time.Time
	return func(done, total int64) {
			if now := time.Now(); done >= total || now.Sub(last) > 100*time.Millisecond {
				last = now
				fmt.Fprintf(a.Err, "\r\x1b[K%s: %s of %s", what, sandbox.FormatSize(done), sandbox.FormatSize(total))
			}
		}, func() {
			if !last.IsZero() {
				fmt.Fprint(a.Err, "\r\x1b[K")
			}
		}
}
