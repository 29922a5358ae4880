package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
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
links and special files are skipped with a message.`,
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
	if _, err := sb.Mkdir(ctx, into); err != nil && sandbox.KindOf(err) != sandbox.KindExists {
		return err
	}
	return walkFiles(src, func(rel string, st fs.FileInfo, open func() (io.ReadCloser, error)) error {
		f, err := open()
		if err != nil {
			return inputError(path.Join(src, rel), err)
		}
		defer f.Close()
		_, err = sb.WriteFile(ctx, path.Join(into, rel), f, st.Mode())
		return err
	})
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
	base := path.Base(path.Clean(src))
	if here, err := os.Stat(dst); strings.HasSuffix(dst, string(filepath.Separator)) || err == nil && here.IsDir() {
		if base != "." && base != ".." && base != "/" {
			dst = filepath.Join(dst, base)
		}
	}
	if st.GetType() == "directory" {
		if err := os.MkdirAll(dst, 0o777); err != nil {
			return sandbox.Wrap("cp", dst, err)
		}
		return a.downloadDir(ctx, sb, src, dst, "")
	}
	return fetch(ctx, sb, src, dst, "")
}

// downloadDir copies the directory src/rel to dst/rel, level by level: one
// answer holds a limited number of entries.
func (a *App) downloadDir(ctx context.Context, sb *client.Sandbox, src, dst, rel string) error {
	files, truncated, err := sb.ListFiles(ctx, path.Join(src, rel), 1)
	if err != nil {
		return err
	}
	if truncated {
		return sandbox.Errorf("cp", sandbox.KindTooLarge, "%s has too many entries to list", path.Join(src, rel)).
			WithHint("pack it inside: firebreak exec ID -- tar c %s", src)
	}
	for _, f := range files {
		name := f.GetName()
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || !filepath.IsLocal(name) {
			return sandbox.Errorf("cp", sandbox.KindProtocol, "the sandbox names a file %q", name)
		}
		below := path.Join(rel, name)
		switch f.GetType() {
		case "directory":
			err = makeBelow(dst, below)
			if err == nil {
				err = a.downloadDir(ctx, sb, src, dst, below)
			}
		case "file":
			err = fetch(ctx, sb, path.Join(src, below), dst, below)
		default:
			a.say("skipped %s: it is a %s", path.Join(src, below), f.GetType())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeBelow makes a directory below dst and nowhere else.
func makeBelow(dst, rel string) error {
	root, err := os.OpenRoot(dst)
	if err != nil {
		return sandbox.Wrap("cp", dst, err)
	}
	defer root.Close()
	return sandbox.Wrap("cp", rel, root.MkdirAll(filepath.FromSlash(rel), 0o777))
}

func fetch(ctx context.Context, sb *client.Sandbox, src, dst, rel string) error {
	to, err := create(dst, rel)
	if err != nil {
		return sandbox.Wrap("cp", dst, err)
	}
	_, err = sb.ReadFile(ctx, src, to)
	return sandbox.Wrap("cp", dst, to.commit(err))
}
