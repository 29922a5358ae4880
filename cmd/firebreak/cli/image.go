package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// buildFlags say what template build is to make a template of.
type buildFlags struct {
	name, image, dir, tar, pack string
	kernel, rootfs              string
	languages                   []string
}

func (f buildFlags) check(cmd *cobra.Command) error {
	given := 0
	for _, n := range []string{"image", "dir", "tar", "pack", "rootfs", "kernel"} {
		if cmd.Flags().Changed(n) {
			if n != "kernel" { // which goes with any of them
				given++
			}
			if v, _ := cmd.Flags().GetString(n); v == "" {
				return sandbox.Errorf("--"+n, sandbox.KindInvalid, "it is empty")
			}
		}
	}
	switch {
	case given > 1:
		return sandbox.Errorf("template build", sandbox.KindInvalid, "--image, --dir, --tar, --pack and --rootfs exclude each other").WithHint("a template is made of one of them")
	case f.name == "" && f.image == "":
		return sandbox.Errorf("template build", sandbox.KindInvalid, "NAME is missing").WithHint("python, node or shell; or a name of your own with --image, --dir, --tar, --pack or --rootfs")
	}
	return nil
}

// buildTemplate has the server build what f says, with progress on a terminal.
func (a *App) buildTemplate(ctx context.Context, s *session, f buildFlags) (*v1.Template, error) {
	p := &progressLine{app: a, on: terminal(a.Err)}
	defer p.end()
	o := client.TemplateOptions{Name: f.name, Image: f.image, Pack: f.pack, Languages: f.languages}
	for _, b := range []struct {
		path string
		to   *io.Reader
	}{{f.kernel, &o.Kernel}, {f.rootfs, &o.Rootfs}} {
		if b.path == "" {
			continue
		}
		file, err := os.Open(b.path)
		if err != nil {
			return nil, inputError(b.path, err)
		}
		defer file.Close()
		*b.to = &counted{r: file, p: p}
	}
	switch {
	case f.dir != "":
		r := packDirectory(f.dir)
		defer r.Close() // ends and waits for the packing
		o.Archive = &counted{r: r, p: p}
	case f.tar == "-":
		o.Archive = &counted{r: a.In, p: p}
	case f.tar != "":
		file, err := os.Open(f.tar)
		if err != nil {
			return nil, inputError(f.tar, err)
		}
		defer file.Close()
		o.Archive = &counted{r: file, p: p}
	}
	return s.BuildTemplateFrom(ctx, o, p.show)
}

// useImage makes o start from an image: what is not built yet is built.
func (a *App) useImage(ctx context.Context, s *session, image string, o *client.CreateOptions) error {
	if image == "" {
		return nil
	}
	if o.Template != "" {
		return sandbox.Errorf("--image", sandbox.KindInvalid, "--image and --template exclude each other").WithHint("leave one out")
	}
	t, err := a.buildTemplate(ctx, s, buildFlags{image: image})
	o.Template = t.GetDigest()
	return err
}

// counted shows how much of an upload is done.
type counted struct {
	r    io.Reader
	p    *progressLine
	n    int64
	next time.Time
}

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if now := time.Now(); now.After(c.next) {
		c.next = now.Add(100 * time.Millisecond)
		c.p.show(&v1.BuildProgress{Stage: "upload", Percent: -1, Text: sandbox.FormatSize(c.n)})
	}
	return n, err
}

// packedDirectory is a directory on its way as a tar file.
type packedDirectory struct {
	*io.PipeReader
	done chan struct{}
}

// Close ends the packing and waits for it.
func (p *packedDirectory) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

// packDirectory reads dir as a tar file. Links are packed as links, and nothing
// outside dir is opened; devices, pipes and sockets are left out.
func packDirectory(dir string) *packedDirectory {
	r, w := io.Pipe()
	p := &packedDirectory{r, make(chan struct{})}
	go func() {
		defer close(p.done)
		w.CloseWithError(writeDirectory(dir, w))
	}()
	return p
}

func writeDirectory(dir string, w io.Writer) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return inputError(dir, err)
	}
	defer root.Close()
	t := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		return packEntry(root, name, t)
	})
	if err == nil {
		err = t.Close()
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return inputError(filepath.Join(dir, pe.Path), err)
	}
	return err
}

func packEntry(root *os.Root, name string, t *tar.Writer) error {
	st, err := root.Lstat(name)
	if err != nil {
		return err
	}
	target := ""
	switch st.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = root.Readlink(name); err != nil {
			return err
		}
	default:
		return nil
	}
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	if err := t.WriteHeader(h); err != nil || st.Mode().Type() != 0 {
		return err
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t, f)
	if errors.Is(err, tar.ErrWriteTooLong) {
		err = sandbox.Errorf("read", sandbox.KindConflict, "changed while it was read").WithID(name)
	}
	return err
}

func (a *App) templateGC() *cobra.Command {
	var unused, age time.Duration
	var layers string
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove templates and layers that nothing uses", Args: cobra.NoArgs,
		Long: `Gc removes templates that no name refers to (a name moves when its image is built
again), layouts of the host template from before a package upgrade, and fetched layers
nobody needs. What a sandbox uses stays, whichever process runs it. A server does the
same every hour.`,
		Example: "  firebreak template gc\n  firebreak template gc --unused 0s --layers 0",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var o client.CollectOptions
			if cmd.Flags().Changed("unused") {
				o.Unused = &unused
			}
			if cmd.Flags().Changed("layer-age") {
				o.LayerAge = &age
			}
			if cmd.Flags().Changed("layers") {
				n := int64(0)
				if layers != "0" { // of all sizes only this one may be none
					var err error
					if n, err = sandbox.ParseSize(layers); err != nil {
						return sandbox.Errorf("--layers", sandbox.KindInvalid, "%q is not a size", layers).WithHint("write 5GiB, or 0 for none")
					}
				}
				o.LayerBytes = &n
			}
			return a.with(cmd, true, func(s *session) error {
				c, err := s.CollectTemplates(cmd.Context(), o)
				if err != nil {
					return err
				}
				for _, d := range c.GetTemplates() {
					fmt.Fprintln(a.Out, d)
				}
				a.say("%d templates and %d layers removed, %s", len(c.GetTemplates()), c.GetLayers(), sandbox.FormatSize(c.GetBytes()))
				return nil
			})
		},
	}
	fs := cmd.Flags()
	fs.DurationVar(&unused, "unused", 0, "keep templates used less long ago (default 1h)")
	fs.DurationVar(&age, "layer-age", 0, "keep layers used less long ago (default 168h)")
	fs.StringVar(&layers, "layers", "", "what layers may take, such as 5GiB; 0: none (default 20GiB)")
	return cmd
}
