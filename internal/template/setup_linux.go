package template

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// setUp does what maintainer scripts would have done, the same way every time.
func (b *builder) setUp(ctx context.Context) error {
	if err := b.trim(); err != nil {
		return err
	}
	for name, target := range b.recipe.Links {
		if err := replaceLink(filepath.Join(b.rootfs, name), target); err != nil {
			return err
		}
	}
	if err := skeleton(b.rootfs); err != nil {
		return err
	}
	if err := b.bundle(); err != nil {
		return err
	}
	b.progress(StageSetUp, 77, "library cache")
	if err := b.inside(ctx, "/sbin/ldconfig", "-X"); err != nil {
		return err
	}
	// inode numbers and times of this very directory
	if err := os.RemoveAll(filepath.Join(b.rootfs, "var/cache/ldconfig")); err != nil {
		return err
	}
	return b.compilePython(ctx)
}

// trim removes what the recipe does not want.
func (b *builder) trim() error {
	for _, pattern := range b.recipe.Trim {
		found, err := filepath.Glob(filepath.Join(globQuote(b.rootfs), pattern))
		if err != nil {
			return err
		}
		for _, p := range found {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// bundle joins the certificates Debian ships into the one file programs read.
func (b *builder) bundle() error {
	files, err := filepath.Glob(filepath.Join(globQuote(b.rootfs), "usr/share/ca-certificates/*/*.crt"))
	if err != nil {
		return err
	}
	sort.Strings(files)
	var all bytes.Buffer
	for _, f := range files {
		pem, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		all.Write(certificates(pem))
	}
	if all.Len() == 0 {
		return errors.New("no CA certificates in the pack")
	}
	return writeBundle(b.rootfs, all.Bytes())
}

// compilePython writes .pyc files that carry a hash of their source and are
// never checked against it. User code cannot write them itself (it is not root),
// and those pip would write carry times.
func (b *builder) compilePython(ctx context.Context) error {
	// -B: what compileall itself imports must not be compiled the usual way,
	// with the time of its source in it.
	args := []string{"-I", "-B", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"}
	n := len(args)
	for _, pattern := range b.recipe.CompilePython {
		found, err := filepath.Glob(filepath.Join(globQuote(b.rootfs), pattern))
		if err != nil {
			return err
		}
		for _, p := range found {
			args = append(args, p[len(b.rootfs):])
		}
	}
	if len(args) == n {
		return nil
	}
	b.progress(StageSetUp, 79, "compiling Python")
	if err := b.inside(ctx, "/usr/bin/python3", args...); err != nil {
		return err
	}
	return checkCompiled(b.rootfs)
}

// checkCompiled makes sure that no compiled file carries the time of its source,
// which would make the digest depend on when the pack was built.
func checkCompiled(rootfs string) error {
	unchecked := []byte{1, 0, 0, 0} // PEP 552: hash-based, not to be checked
	return filepath.WalkDir(filepath.Join(rootfs, "usr"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Ext(p) != ".pyc" {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil && (len(b) < 16 || !bytes.Equal(b[4:8], unchecked)) {
			err = fmt.Errorf("%s is not compiled reproducibly", p[len(rootfs):])
		}
		return err
	})
}

// inside runs a program of the pack in the pack.
func (b *builder) inside(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Err = nil // whether it exists is a question for the other root
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/root", "PYTHONHASHSEED=0"}
	tail := &tailWriter{}
	cmd.Stdout, cmd.Stderr = tail, tail
	if err := runChroot(b.rootfs, cmd); err != nil {
		return fmt.Errorf("%s inside the pack: %s: %w", filepath.Base(program), tail.reason(), err)
	}
	return nil
}

// checkLibraries makes sure that leaving packages out broke nothing: every
// shared library a program or library of the pack needs must be in it.
func checkLibraries(rootfs string) error {
	have := map[string]bool{}
	needs := map[string]string{} // library to one that needs it
	err := filepath.WalkDir(filepath.Join(rootfs, "usr"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.Contains(d.Name(), ".so") {
			have[d.Name()] = true
		}
		if !d.Type().IsRegular() {
			return nil
		}
		libs, err := neededBy(p)
		for _, l := range libs {
			needs[l] = p[len(rootfs):]
		}
		return err
	})
	if err != nil {
		return err
	}
	var missing []string
	for lib, by := range needs {
		if !have[lib] {
			missing = append(missing, fmt.Sprintf("%s needs %s", by, lib))
		}
	}
	slices.Sort(missing)
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, ", "))
	}
	return nil
}

// neededBy lists the libraries an ELF file needs; nil for any other file.
func neededBy(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var magic [4]byte
	if n, _ := f.ReadAt(magic[:], 0); n < 4 || string(magic[:]) != elf.ELFMAG {
		return nil, nil
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return e.ImportedLibraries()
}
