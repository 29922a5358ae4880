package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/vmimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Given is a file that a machine is to boot from: an upload of BuildOptions.Owner, or
// a path of this host below one of Options.GivenDirs.
type Given struct{ Upload, Path string }

// Boot is what a template's machines boot that was brought.
type Boot struct {
	Kernel *BootFile `json:"kernel,omitempty"`
	Rootfs *BootFile `json:"rootfs,omitempty"`
}

// BootFile is one file of that.
type BootFile struct {
	Digest  string `json:"digest"` // "sha256:" and 64 hex digits
	Size    int64  `json:"size"`
	Format  string `json:"format"`            // elf, bzimage; squashfs, erofs, ext4
	Release string `json:"release,omitempty"` // of a kernel, as it says
}

// bootName is the directory of those files, beside a template's root.
const bootName = "boot"

// Names in it.
const (
	bootKernel = "kernel"
	bootRootfs = "rootfs"
)

func copyOf[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// files are the parts there are, by name.
func (b *Boot) files() map[string]*BootFile {
	list := map[string]*BootFile{}
	if b != nil && b.Kernel != nil {
		list[bootKernel] = b.Kernel
	}
	if b != nil && b.Rootfs != nil {
		list[bootRootfs] = b.Rootfs
	}
	return list
}

func (b *Boot) size() (n int64) {
	for _, f := range b.files() {
		n += f.Size
	}
	return n
}

// root is b for a backend, with the template in dir.
func (b *Boot) root(dir string) *sandbox.Boot {
	if b == nil {
		return nil
	}
	r := &sandbox.Boot{}
	for name, f := range b.files() {
		file := sandbox.File{Path: filepath.Join(dir, bootName, name), Digest: f.Digest}
		if name == bootKernel {
			r.Kernel = file
		} else {
			r.Image = file
		}
	}
	return r
}

// identity is the digest of a template of base that boots b.
func (b *Boot) identity(base string, languages []string) string {
	raw, err := json.Marshal(struct {
		Format    string
		Base      string
		Languages []string
		Boot      *Boot
	}{"firebreak boot 1", base, languages, b})
	if err != nil { // strings and numbers
		panic(fmt.Sprintf("encode: %v", err))
	}
	return "sha256:" + hexSum(raw)
}

// verify reads the files and compares them with what was copied.
func (b *Boot) verify(ctx context.Context, dir string) error {
	for name, f := range b.files() {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, bootName, name)
		st, err := os.Lstat(path)
		if err != nil || !st.Mode().IsRegular() {
			return fmt.Errorf("its %s is missing", name)
		}
		sum, err := hashFile(path, st.Size())
		if err != nil || "sha256:"+sum != f.Digest {
			return fmt.Errorf("its %s is not what was brought", name)
		}
	}
	return nil
}

// givens are the files a build was given, open.
type givens struct {
	kernel, rootfs *os.File
	uploads        []*upload
}

func (g *givens) some() bool { return g.kernel != nil || g.rootfs != nil }

// close lets go of them. Uploads are used up.
func (g *givens) close() (err error) {
	for _, f := range []*os.File{g.kernel, g.rootfs} {
		if f != nil {
			f.Close() // read only
		}
	}
	for _, u := range g.uploads {
		err = errors.Join(err, u.t.discard())
	}
	return err
}

// open opens what o gives, after looking whether it goes together.
func (s *Store) open(name string, o BuildOptions) (g *givens, err error) {
	g = &givens{}
	bad := func(hint, format string, args ...any) error {
		return sandbox.Errorf(opBuild, sandbox.KindInvalid, format, args...).WithHint("%s", hint)
	}
	i := slices.IndexFunc(o.Languages, func(l string) bool { return !isLanguage(l) })
	switch {
	case o.Rootfs == Given{} && len(o.Languages) > 0:
		return g, bad("leave the languages out", "only of a root file system that is brought nobody knows what it can run")
	case o.Rootfs != Given{} && (o.Image != "" || o.Upload != "" || o.Pack != "" || len(o.Packages) > 0):
		return g, bad("a template is made of one of them", "a root file system, an image, an archive and a pack exclude each other")
	case i >= 0:
		return g, bad("one of "+strings.Join(languages, ", "), "unknown language %q", clip(o.Languages[i]))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if g.kernel, err = s.openGiven(g, "kernel", o.Owner, o.Kernel); err == nil {
		g.rootfs, err = s.openGiven(g, "root file system", o.Owner, o.Rootfs)
	}
	return g, err
}

// openGiven opens one file; nil for none.
func (s *Store) openGiven(g *givens, what, owner string, from Given) (*os.File, error) {
	switch {
	case from == Given{}:
		return nil, nil
	case from.Upload != "" && from.Path != "":
		return nil, sandbox.Errorf(opBuild, sandbox.KindInvalid, "the %s is both uploaded and a path of the server", what).WithHint("leave one out")
	case from.Path != "":
		return openBelow(s.opts.GivenDirs, from.Path)
	}
	u, err := s.take(owner, from.Upload)
	if err != nil {
		return nil, err
	}
	g.uploads = append(g.uploads, u)
	return os.Open(u.path())
}

// openBelow opens the regular file at path if it lies below one of dirs. Links are
// followed where they stay below it. What lies elsewhere is refused without a look,
// so that nobody learns what there is.
func openBelow(dirs []string, path string) (*os.File, error) {
	for _, dir := range dirs {
		rel, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsAbs(path) || !filepath.IsLocal(rel) || rel == "." {
			continue
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, sandbox.Errorf(opBuild, sandbox.KindUnavailable, "the directory of images %s: %w", dir, err)
		}
		defer root.Close()
		f, err := root.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0) // no pipe is waited for
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, sandbox.Errorf(opBuild, sandbox.KindNotFound, "there is no %s", clip(path))
		case err != nil:
			return nil, sandbox.Errorf(opBuild, sandbox.KindDenied, "%s cannot be read, or leads out of %s", clip(path), dir)
		}
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
			f.Close()
			return nil, sandbox.Errorf(opBuild, sandbox.KindInvalid, "%s is not a regular file", clip(path))
		}
		return f, nil
	}
	return nil, sandbox.Errorf(opBuild, sandbox.KindDenied, "the server boots no file of its own from %s", clip(path)).
		WithHint("name the directory in image_dirs of the server's configuration, or upload the file: `firebreak template build NAME --kernel FILE --rootfs FILE`")
}

// copy puts what was given into dir and says what it is: of the copies, which nobody
// else changes. Errors: KindInvalid for what machines do not boot.
func (g *givens) copy(ctx context.Context, dir string, l Limits) (*Boot, error) {
	if !g.some() {
		return nil, nil
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	b := &Boot{}
	if g.kernel != nil {
		b.Kernel = &BootFile{}
		err := b.Kernel.take(ctx, g.kernel, filepath.Join(dir, bootKernel), vmimage.MaxKernel, func(r io.ReaderAt, n int64) error {
			k, err := vmimage.InspectKernel(r, n)
			b.Kernel.Format, b.Kernel.Release = k.Format, k.Release
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	failpoint.Hit("template.boot/after-kernel")
	if g.rootfs != nil {
		b.Rootfs = &BootFile{}
		err := b.Rootfs.take(ctx, g.rootfs, filepath.Join(dir, bootRootfs), l.Bytes, func(r io.ReaderAt, n int64) (err error) {
			b.Rootfs.Format, err = vmimage.InspectRoot(r, n)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	failpoint.Hit("template.boot/after-rootfs")
	return b, nil
}

// take copies a file to path, measures it and has it looked at.
func (b *BootFile) take(ctx context.Context, from *os.File, path string, limit int64, look func(io.ReaderAt, int64) error) (err error) {
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	sum := sha256.New()
	b.Size, err = io.Copy(io.MultiWriter(to, sum), io.LimitReader(ending{ctx, from}, limit+1))
	switch {
	case err != nil:
		return err
	case b.Size > limit:
		return refuse(sandbox.KindTooLarge, "%s to boot from is larger than %s", filepath.Base(path), sandbox.FormatSize(limit))
	}
	b.Digest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	if err := look(to, b.Size); err != nil {
		return err
	}
	return to.Chmod(0o444) // whatever the umask: a monitor is another user
}

// buildRootfs makes a template of a root file system that is brought. Its root is
// empty: nobody but a guest's kernel looks into the image.
func (s *Store) buildRootfs(ctx context.Context, name string, o BuildOptions, g *givens) (Template, error) {
	if name != "" {
		if err := checkName(name); err != nil {
			return Template{}, err
		}
	}
	t, err := s.newTemporary()
	if err != nil {
		return Template{}, noSpace(err)
	}
	root := filepath.Join(t.dir, "rootfs")
	err = os.Mkdir(root, 0o755)
	if err == nil {
		err = os.Chmod(root, 0o755)
	}
	if err == nil {
		err = settle(root, true)
	}
	if err != nil {
		return Template{}, noSpace(errors.Join(err, t.discard()))
	}
	m := manifest{Name: name, Description: "a root file system that was brought", Languages: sortedLanguages(slices.Clone(o.Languages))}
	digest, err := s.seal(ctx, t, name, "", m, g, func(stage Stage, percent int, line string) {
		if o.Progress != nil {
			o.Progress(Progress{stage, percent, line})
		}
	})
	if err != nil {
		return Template{}, noSpace(err)
	}
	built, err := s.load(digest)
	return built.called(name, ""), err
}
