package cli

import (
	"context"
	"io"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/gitsource"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxLabel is how long the value of a label may be.
const maxLabel = 1024

// gitTree reads what --git names, nil for nothing, and labels the sandbox with it.
// The server never sees the repository: only files, and the labels.
func (a *App) gitTree(cmd *cobra.Command, arg string, o *client.CreateOptions) (*gitsource.Tree, error) {
	if !cmd.Flags().Changed("git") {
		return nil, nil
	}
	spec, err := gitsource.Parse(arg)
	if err != nil {
		return nil, err
	}
	if !spec.Remote() {
		if spec.Repo, err = filepath.Abs(spec.Repo); err != nil {
			return nil, sandbox.Wrap("--git", spec.Repo, err)
		}
	}
	labels := map[string]string{"git.repo": spec.Repo, "git.ref": spec.Ref, "git.subpath": spec.Subpath, "git.commit": ""}
	for k, v := range labels {
		if _, taken := o.Metadata[k]; taken {
			return nil, sandbox.Errorf("--metadata", sandbox.KindInvalid, "%s is what --git sets", k).WithHint("leave it out")
		}
		if len(v) > maxLabel {
			return nil, sandbox.Errorf("--git", sandbox.KindTooLarge, "%s has more than %d bytes", k, maxLabel).WithHint("name a shorter path")
		}
	}
	n, end, err := a.gitNetwork()
	if err != nil {
		return nil, err
	}
	t, err := n.Read(cmd.Context(), spec)
	end()
	if err != nil {
		return nil, err
	}
	labels["git.commit"] = t.Commit
	for k, v := range labels {
		if v != "" {
			o.Metadata[k] = v
		}
	}
	if terminal(a.Err) {
		a.say("git: %s is commit %s", t.Ref, t.Commit)
	}
	if t.From != "" {
		a.say("git: %s redirects to %s", t.Repo, t.From)
	}
	if n := len(t.Submodules); n > 0 {
		a.say("git: submodules are left out: %d, the first is %s", n, t.Submodules[0])
	}
	if n := len(t.Pointers); n > 0 {
		a.say("git: LFS files stay pointers: %d, the first is %s", n, t.Pointers[0])
	}
	return t, nil
}

func treeInputs(t *gitsource.Tree) []client.Input {
	if t == nil {
		return nil
	}
	inputs := make([]client.Input, 0, len(t.Files)+len(t.Links))
	for _, f := range t.Files {
		inputs = append(inputs, client.Input{Path: f.Path, Mode: f.Mode, Size: f.Size,
			Open: func() (io.ReadCloser, error) { return t.Open(f), nil }})
	}
	for _, l := range t.Links {
		inputs = append(inputs, client.Input{Path: l.Path, Link: l.Target})
	}
	return inputs
}

// putTree brings a tree into the home.
func putTree(ctx context.Context, sb *client.Sandbox, t *gitsource.Tree) error {
	for _, in := range treeInputs(t) {
		if err := sb.Put(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

// readEntrypoint reads a program of the tree.
func readEntrypoint(name string, t *gitsource.Tree) ([]byte, error) {
	f, ok := t.Find(path.Clean(name))
	if !ok {
		return nil, sandbox.Errorf("run", sandbox.KindInvalid, "the commit has no such file").WithID(name).
			WithHint("with --git, FILE is a file of the tree; what is not committed is not in it; -- CMD is a command of the sandbox")
	}
	return readAll(t.Open(f), maxProgram, name)
}

func sourceJSON(t *gitsource.Tree) *sourceOut {
	if t == nil {
		return nil
	}
	return &sourceOut{Repo: t.Repo, Ref: t.Ref, Commit: t.Commit, Subpath: t.Subpath}
}
