package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) cpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SRC DST",
		Short: "Copy files and directories into or out of a sandbox",
		Long: `Cp copies between here and a sandbox; one of SRC and DST is ID:PATH. A relative
PATH starts at the sandbox user's home. A DST that is a directory, or ends in "/",
is what SRC goes into. "-" is standard input or output.

What comes out of a sandbox never leaves DST, whatever its names and links are;
links, special files and names that a terminal would obey are skipped with a
message, and no file is executable. A directory that goes in keeps its links, as
long as they stay in it, and its modes. Both ways it is one stream.`,
		Example: `  firebreak cp data.csv $id:
  firebreak cp src $id:/tmp/src
  firebreak cp $id:plots ./out/
  firebreak cp $id:result.json - | jq .`,
		Args: cobra.ExactArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if strings.ContainsAny(prefix, ":/.") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			var names []string
			for _, n := range a.sandboxNames(cmd, prefix) {
				id, what, _ := strings.Cut(n, "\t")
				names = append(names, cobra.CompletionWithDesc(id+":", what))
			}
			return names, cobra.ShellCompDirectiveNoSpace
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			src, dst := parseRemote(args[0]), parseRemote(args[1])
			if (src.id == "") == (dst.id == "") {
				return sandbox.Errorf("", sandbox.KindInvalid, "exactly one of SRC and DST must be in a sandbox").
					WithHint("write ID:PATH for the sandbox's side, ./NAME for a path here that contains a colon")
			}
			return a.withSession(cmd, func(s *session) error {
				if src.id != "" {
					return a.download(cmd.Context(), s.Sandbox(src.id), src.path, dst.path)
				}
				return a.upload(cmd.Context(), s.Sandbox(dst.id), src.path, dst.path)
			})
		},
	}
}

// upload copies a file, a directory or standard input into a sandbox.
func (a *App) upload(ctx context.Context, sb *client.Sandbox, src, dst string) error {
	if src == "-" {
		if dst == "" || strings.HasSuffix(dst, "/") {
			return sandbox.Errorf("cp", sandbox.KindInvalid, "standard input has no name").WithHint("write ID:PATH with a file name")
		}
		_, err := sb.WriteFile(ctx, dst, a.In, 0)
		return err
	}
	st, err := os.Stat(src)
	if err != nil {
		return inputError(src, err)
	}
	into, err := target(ctx, sb, src, dst)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		f, err := os.Open(src)
		if err != nil {
			return inputError(src, err)
		}
		defer f.Close()
		_, err = sb.WriteFile(ctx, into, f, st.Mode())
		return err
	}
	return uploadTree(ctx, sb, src, into)
}

// target is where in the sandbox src goes: dst itself, or below it if dst is a
// directory.
func target(ctx context.Context, sb *client.Sandbox, src, dst string) (string, error) {
	abs, err := filepath.Abs(src)
	if err != nil {
		return "", inputError(src, err)
	}
	base := filepath.Base(abs)
	if dst == "" || strings.HasSuffix(dst, "/") {
		return path.Join(dst, base), nil
	}
	st, err := sb.Stat(ctx, dst)
	switch {
	case err == nil && st.GetType() == "directory":
		return path.Join(dst, base), nil
	case err == nil, sandbox.KindOf(err) == sandbox.KindNotFound && !gone(err):
		return dst, nil
	}
	return "", err
}

// gone tells a missing sandbox from a missing file.
func gone(err error) bool {
	var se *sandbox.Error
	return errors.As(err, &se) && sandbox.ID(se.ID).Valid() && se.Op == "find"
}

// download copies a file or directory out of a sandbox.
func (a *App) download(ctx context.Context, sb *client.Sandbox, src, dst string) error {
	if src == "" {
		src = "."
	}
	if dst == "-" {
		_, err := sb.ReadFile(ctx, src, a.Out)
		return err
	}
	st, err := sb.Stat(ctx, src)
	if err != nil {
		return err
	}
	if there, err := os.Stat(dst); strings.HasSuffix(dst, string(filepath.Separator)) || err == nil && there.IsDir() {
		if base := path.Base(path.Clean(src)); base != "." && base != ".." && base != "/" {
			dst = filepath.Join(dst, base)
		}
	}
	return (&downloader{app: a, sb: sb}).save(ctx, st.GetType(), src, dst)
}

// downloader copies out of one sandbox.
type downloader struct {
	app  *App
	sb   *client.Sandbox
	caps *caps // nil: none
}

// caps bounds what is copied: hostile code makes files of any size for nothing.
type caps struct {
	file, total int64 // bytes
	entries     int
}

// save copies src to dst itself.
func (d *downloader) save(ctx context.Context, kind, src, dst string) error {
	switch kind {
	case "directory":
		return d.tree(ctx, src, dst)
	case "file":
		return d.store(dst, "", func(w io.Writer) error {
			_, err := d.sb.ReadFile(ctx, src, w)
			return err
		})
	}
	return sandbox.Errorf("cp", sandbox.KindInvalid, "it is neither a file nor a directory but %s", article(kind)).WithID(src)
}

// article names what is not copied: a symlink, or one of the devices, pipes and
// sockets that the guest does not tell apart.
func article(kind string) string {
	if kind == "other" {
		return "a special file"
	}
	return "a " + kind
}

// store makes a file of what fill writes, whole or not at all.
func (d *downloader) store(dst, rel string, fill func(io.Writer) error) error {
	to, err := create(dst, rel)
	if err != nil {
		return sandbox.Wrap("cp", dst, err)
	}
	var w io.Writer = to
	if d.caps != nil {
		w = &capped{w: to, caps: d.caps, file: d.caps.file}
	}
	return sandbox.Wrap("cp", dst, to.commit(fill(w)))
}

// capped refuses what is over the caps.
type capped struct {
	w    io.Writer
	caps *caps
	file int64 // bytes this file may still have
}

// Write implements io.Writer.
func (c *capped) Write(p []byte) (int, error) {
	n := int64(len(p))
	if c.file -= n; c.file < 0 {
		return 0, sandbox.Errorf("cp", sandbox.KindTooLarge, "it is larger than %s", sandbox.FormatSize(c.caps.file))
	}
	if c.caps.total -= n; c.caps.total < 0 {
		return 0, sandbox.Errorf("cp", sandbox.KindTooLarge, "all together they are too large")
	}
	return c.w.Write(p)
}
