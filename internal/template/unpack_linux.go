package template

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// mergedDirs are links into /usr in every pack, whatever the release's packages
// say.
var mergedDirs = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// unpack puts the package files into the root directory.
func (b *builder) unpack(ctx context.Context, debs []string) error {
	root, err := os.OpenRoot(b.rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} { // the others do not occur on 64-bit systems
		if err := makeDirs(filepath.Join(b.rootfs, "usr", d)); err != nil {
			return err
		}
		if err := root.Symlink("usr/"+d, d); err != nil {
			return err
		}
	}
	slices.Sort(debs)
	for i, deb := range debs {
		p := debName(deb)
		b.progress(StageUnpack, 55+20*i/len(debs), "unpacking "+p.Name)
		if b.recipe.leavesOut(p.Name) {
			continue
		}
		if err := unpackDeb(ctx, root, deb); err != nil {
			return fmt.Errorf("unpacking %s: %w", p.Name, err)
		}
		b.packages = append(b.packages, p)
	}
	if len(b.packages) == 0 {
		return errors.New("the mirror gave no packages")
	}
	return nil
}

// debName takes name_version_arch.deb apart.
func debName(file string) Package {
	f := strings.SplitN(strings.TrimSuffix(filepath.Base(file), ".deb"), "_", 3)
	p := Package{Name: f[0]}
	if len(f) > 1 {
		p.Version, _ = url.PathUnescape(f[1]) // an epoch's colon is written %3a
	}
	return p
}

func unpackDeb(ctx context.Context, root *os.Root, deb string) error {
	r, w := io.Pipe()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Env = buildEnv()
	cmd.Stdout = w
	tail := &tailWriter{}
	cmd.Stderr = tail
	done := make(chan error, 1)
	go func() {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		err := runGroup(cmd)
		if err != nil {
			err = fmt.Errorf("dpkg-deb: %s: %w", tail.reason(), err)
		}
		w.CloseWithError(err)
		done <- err
	}()
	err := untar(root, r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // padding
	}
	r.CloseWithError(err) // ends a dpkg-deb that still writes
	return errors.Join(err, <-done)
}

// untar unpacks a package's files below root, which nothing in the archive can
// leave. Everything belongs to whoever runs this; setuid, setgid and write
// permission for others are not granted; devices are refused.
func untar(root *os.Root, r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := mergedName(h.Name)
		if name == "." {
			continue
		}
		if err := untarOne(root, tr, h, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// mergedName is where a packaged path belongs on a merged-usr system.
func mergedName(name string) string {
	name = path.Clean(strings.TrimLeft(name, "/"))
	top, _, _ := strings.Cut(name, "/")
	if slices.Contains(mergedDirs, top) {
		name = "usr/" + name
	}
	return name
}

func untarOne(root *os.Root, tr *tar.Reader, h *tar.Header, name string) error {
	mode := fs.FileMode(h.Mode).Perm() &^ 0o022
	if h.Typeflag != tar.TypeDir {
		// dpkg's own rule is that a later package replaces a file of an earlier
		// one; without its database that is all there is to do.
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if st, err := root.Lstat(name); err == nil && st.IsDir() {
			return nil // the first package decides about its mode
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return root.Chmod(name, mode)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(mergedName(h.Linkname), name)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err == nil {
			err = f.Chmod(mode)
		}
		return errors.Join(err, f.Close())
	default:
		return fmt.Errorf("a %q entry does not belong in a template", h.Typeflag)
	}
}
