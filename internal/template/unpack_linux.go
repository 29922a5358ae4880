package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

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
	err := untar(ctx, root, r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // padding
	}
	r.CloseWithError(err) // ends a dpkg-deb that still writes
	return errors.Join(err, <-done)
}

// untar unpacks a package's files. Everything belongs to whoever runs this, and
// others are not granted write permission.
//
// dpkg's own rule is that a later package replaces a file of an earlier one;
// without its database that is all there is to do.
func untar(ctx context.Context, root *os.Root, r io.Reader) error {
	u := newUnpacker(root, Limits{})
	u.packages = true
	return u.archive(ctx, r)
}
