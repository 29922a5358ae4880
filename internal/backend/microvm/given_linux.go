package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/vmimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// given is a file of a template's own, in the cache: what is booted is a copy that
// nobody but this package writes, links or removes.
func (c *images) given(ctx context.Context, name, kind string, f sandbox.File) (string, error) {
	want, ok := strings.CutPrefix(f.Digest, "sha256:")
	if !ok || len(want) != 2*sha256.Size || !filepath.IsAbs(f.Path) {
		return "", sandbox.Errorf("create", sandbox.KindInvalid, "the template names no %s by path and digest", kind)
	}
	path, err := c.need(ctx, nameOf(name, want), func(w io.Writer) error { return copyChecked(w, f.Path, want) })
	if errors.Is(err, errOther) || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return "", sandbox.Errorf("create", sandbox.KindUnavailable, "the template is damaged: its %s is not what it was built with", kind).
			WithHint("remove the template and build it again")
	}
	return path, err
}

var errOther = errors.New("the file has another digest")

// copyChecked copies the regular file at path, if its SHA-256 is want. What was
// written before that was known is the caller's to throw away.
func copyChecked(w io.Writer, path, want string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return errOther
	}
	sum := sha256.New()
	// No more than there was: a file that grows has another digest, too.
	if _, err := io.CopyN(io.MultiWriter(w, sum), f, fi.Size()); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != want {
		return errOther
	}
	return nil
}

// boots puts into m and p what a template brings: its kernel, with the modules this
// host has for it, and its root file system, whose kind it notes in s.
func (i *Instance) boots(ctx context.Context, b *sandbox.Boot, p *probed, s *machine.Settings, m *vm) (err error) {
	if b.Image.Path != "" {
		if m.root, err = i.b.images.given(ctx, "given", "root file system", b.Image); err != nil {
			return err
		}
		if s.Given, err = inspect(m.root, vmimage.InspectRoot); err != nil {
			return err
		}
	}
	if b.Kernel.Path == "" {
		return missing(p.modulesFor(s.Given, s.Network != nil))
	}
	if m.kernel, err = i.b.images.given(ctx, "kernel", "kernel", b.Kernel); err != nil {
		return err
	}
	k, err := inspect(m.kernel, vmimage.InspectKernel)
	if err != nil {
		return err
	}
	if p.vmm == vmmFirecracker && k.Format != vmimage.KernelELF {
		return sandbox.Errorf("create", sandbox.KindUnsupported, "firecracker boots no compressed kernel, as the template's is").
			WithHint("build the template with its vmlinux, or use QEMU (machine_monitor: qemu)")
	}
	p.moduleDir = modulesOf("/", k.Release)
	return missing(p.modulesFor(s.Given, s.Network != nil))
}

// missing is the error of a module that is neither built in nor on this host.
func missing(err error) error {
	var lacks *os.PathError
	if errors.As(err, &lacks) && errors.Is(err, os.ErrNotExist) {
		return sandbox.Errorf("create", sandbox.KindInvalid, "the kernel has no %s, and this host no module of it", filepath.Base(lacks.Path)).
			WithHint("%s", hintGiven)
	}
	return err
}

// inspect looks into a file.
func inspect[T any](path string, look func(io.ReaderAt, int64) (T, error)) (t T, err error) {
	f, err := os.Open(path)
	if err != nil {
		return t, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return t, err
	}
	return look(f, fi.Size())
}

// modulesOf is the directory with the modules of a release, which is no path; "" when
// this host has none.
func modulesOf(root, release string) string {
	dir := filepath.Join(root, "lib/modules", release)
	if _, err := os.Stat(filepath.Join(dir, "modules.dep")); release == "" || err != nil {
		return ""
	}
	return dir
}

// modulesFor finds the modules a guest needs whose root file system is of the given
// kind, "" is one of ours, with a network or without.
func (p *probed) modulesFor(given string, wired bool) error {
	need := slices.Clone(machine.Modules)
	if p.vsock != 0 {
		need = append(need, machine.VSockModules...)
	}
	if wired {
		need = append(need, machine.NetworkModules...)
	}
	if given != "" {
		need = append(need, given)
	}
	p.modules = nil
	if p.moduleDir == "" {
		return nil // built in, or its first process says what is not
	}
	var err error
	if p.modules, err = vmimage.Modules(p.moduleDir, need...); err != nil {
		return fmt.Errorf("modules of the kernel: %w", err)
	}
	return nil
}

// hintGiven is what to do about a kernel that boots and then does not get far.
const hintGiven = "a kernel needs what images/kernel/microvm.config lists, built in or as modules below /lib/modules/RELEASE of this host"

// explainGiven is why a machine of a template's own kernel or root file system did not
// come up: the template's fault, as far as can be told, told by its console.
func (i *Instance) explainGiven(ctx context.Context) error {
	said := lastWords(i.stop.console)
	if said == "" {
		said = lastLine(i.stop.console)
	}
	switch {
	case said != "":
		said = ": its console ends with: " + said
	case i.said != "":
		said = ": " + i.said
	case i.intent.VMM == vmmQEMU:
		said = ": its console is empty"
	default:
		said = ": try it with QEMU, which shows what its console says"
	}
	kind := sandbox.KindInvalid
	why := "the template's kernel or root file system does not come up"
	if cause := ctx.Err(); cause != nil {
		kind, why = sandbox.KindOf(cause), "the machine of the template's kernel or root file system did not answer in time"
	} else if i.stop.why != "" {
		why += ": " + i.stop.why
	}
	return sandbox.Errorf("create", kind, "%s%s", why, said).WithID(string(i.id)).WithHint("%s", hintGiven)
}

// lastLine is the last of a console that is not empty.
func lastLine(console string) (last string) {
	for line := range strings.Lines(console) {
		if line = strings.TrimSpace(printable(line)); line != "" {
			last = line
		}
	}
	return clip(last)
}
