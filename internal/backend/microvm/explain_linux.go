package microvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// explain turns a failed boot into a typed error that says what the machine or
// its monitor said.
func (i *Instance) explain(ctx context.Context, err error) error {
	id := string(i.id)
	if i.given && (ctx.Err() != nil || errors.Is(err, errStopped) || errors.Is(err, errMonitor)) {
		return i.explainGiven(ctx)
	}
	if cause := ctx.Err(); cause != nil {
		return sandbox.Errorf("create", sandbox.KindOf(cause), "the agent did not answer: %w", cause).WithID(id)
	}
	var typed *sandbox.Error
	if errors.As(err, &typed) {
		return typed
	}
	switch {
	case errors.Is(err, errStopped):
		err = fmt.Errorf("%w: %s", err, i.stop.why)
		if said := lastWords(i.stop.console); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return sandbox.Errorf("create", sandbox.KindInternal, "%w", err).WithID(id)
	case errors.Is(err, errMonitor):
		if i.said != "" {
			err = fmt.Errorf("%w: %s", err, i.said)
		}
	}
	kind := sandbox.KindOf(err)
	if kind == sandbox.KindInternal && nearlyFull(i.b.cfg.Dir) {
		kind = sandbox.KindNoSpace
	}
	switch kind {
	case sandbox.KindNoSpace:
		return sandbox.Errorf("create", kind, "the host's disk is full: %w", bare(err)).WithID(id).
			WithHint("free space, or inodes, on the disk of the data directory")
	case sandbox.KindCapacity:
		e := sandbox.Errorf("create", kind, "the host has no more descriptors, tasks or memory for us: %w", bare(err)).WithID(id).
			WithHint("retry in a moment, or raise the limits the server runs with")
		e.RetryAfter = 5 * time.Second
		return e
	case sandbox.KindNotFound, sandbox.KindExists:
		kind = sandbox.KindInternal
	}
	return sandbox.Errorf("create", kind, "%w", err).WithID(id)
}

// listen keeps what the console says of a machine of a template's own files that did
// not answer, before it is removed.
func (i *Instance) listen(ctx context.Context) {
	if t, ok := i.monitor.(talker); ok && i.given && i.launched != nil && i.stop.console == "" {
		i.stop.console = t.console(ctx, i.dir)
	}
}

// bare is an error of the host without the files it names: the reader may be a
// tenant.
func bare(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

// nearlyFull reports whether dir's file system lacks the space, or the inodes,
// that starting a machine takes.
func nearlyFull(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false
	}
	return int64(st.Bavail)*st.Bsize < 64<<20 || st.Files > 0 && st.Ffree < 64
}

// mountPoints are what every root file system has to have.
var mountPoints = []string{guest.DefaultHome, filepath.Dir(guest.AgentPath), "/proc", "/sys", "/dev", "/tmp"}

// checkRoot refuses a root file system that lacks a mount point: nothing inside
// could make it on a read-only image.
func checkRoot(s sandbox.Spec) error {
	bad := func(format string, args ...any) *sandbox.Error {
		return sandbox.Errorf("create", sandbox.KindInvalid, format, args...).WithID(string(s.Instance))
	}
	if b := s.Root.Boot; b != nil && b.Image.Path != "" {
		return nil // its first process makes what is missing
	}
	if !filepath.IsAbs(s.Root.Dir) {
		return bad("root directory %q is not an absolute path", s.Root.Dir)
	}
	need := mountPoints
	for _, m := range s.Root.Mounts {
		if !filepath.IsAbs(m.Source) || !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) == "/" {
			return bad("mount of %q at %q: both must be absolute paths below /", m.Source, m.Target)
		}
		if fi, err := os.Stat(m.Source); err != nil || !fi.IsDir() {
			return bad("mount source %q is not a directory", m.Source)
		}
		need = append(need[:len(need):len(need)], m.Target)
	}
	for _, p := range need {
		base, rest := carrier(s.Root, p)
		root, err := os.OpenRoot(base)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return bad("root file system: %w", bare(err))
		}
		if err != nil {
			return sandbox.Wrap("create", string(s.Instance), err)
		}
		fi, err := root.Stat(rest)
		root.Close()
		if err != nil || !fi.IsDir() {
			return bad("root file system lacks the mount point %s", p).WithHint("build the template again")
		}
	}
	return nil
}

// carrier returns the directory that path p of the guest lies in, which may be
// one of the mounts, and the path below it.
func carrier(r sandbox.Root, p string) (base, rest string) {
	p = filepath.Clean(p)
	base, at := r.Dir, "/"
	for _, m := range r.Mounts {
		if t := filepath.Clean(m.Target); len(t) > len(at) && strings.HasPrefix(p, t+"/") {
			base, at = m.Source, t
		}
	}
	rest, _ = filepath.Rel(at, p) // both are absolute
	return base, rest
}
