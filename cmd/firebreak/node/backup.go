package node

import (
	"context"
	"os"
	"path/filepath"
	"strconv"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/backup"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Backup writes a backup of the data directory, whether or not a server owns
// it. Errors: those of package backup.
func (w Wiring) Backup(ctx context.Context, c *config.Config, o cli.BackupOptions) (err error) {
	if err := private(c.Data); err != nil {
		return err
	}
	names, err := template.Names(filepath.Join(c.Data, "templates"))
	if err != nil {
		return err
	}
	s := backup.Source{Data: c.Data, Version: w.Build.Version, Progress: o.Progress}
	for _, n := range names {
		s.Templates = append(s.Templates, backup.Template{Name: n.Name, Digest: n.Digest})
	}
	if o.File != "-" {
		_, err := backup.WriteFile(ctx, o.File, o.Force, s)
		return err
	}
	stage, err := os.MkdirTemp("", "firebreak-backup-")
	if err != nil {
		return sandbox.Wrap("backup", "", err)
	}
	defer func() {
		if e := os.RemoveAll(stage); err == nil {
			err = sandbox.Wrap("backup", stage, e)
		}
	}()
	_, err = backup.Write(ctx, o.To, stage, s)
	return err
}

// Restore makes the data directory from a backup. Errors: those of package
// backup.
func (w Wiring) Restore(ctx context.Context, c *config.Config, o cli.RestoreOptions) (r cli.Restored, err error) {
	from := o.From
	if o.File != "-" {
		f, err := os.Open(o.File)
		if err != nil {
			return r, sandbox.Wrap("restore", o.File, err)
		}
		defer f.Close()
		from = f
	}
	who := "uid:" + strconv.Itoa(os.Getuid())
	m, lost, err := backup.Restore(ctx, from, c.Data, backup.Target{Principal: who, Progress: o.Progress})
	if err != nil {
		return r, err
	}
	r = cli.Restored{Data: c.Data, Made: m.Created, Lost: lost, Sealed: m.Sealed}
	for _, t := range m.Templates {
		r.Templates = append(r.Templates, t.Name+" ("+t.Digest+")")
	}
	return r, nil
}
