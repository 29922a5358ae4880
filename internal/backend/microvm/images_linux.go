package microvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/internal/vmimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// imageFormat is part of every image's name: what an earlier version made is not
// taken for what this one would make.
const imageFormat = "firebreak image 1"

// unusedAge is after how long an image that nobody booted from is removed. A
// machine that runs from it keeps it, without its name.
const unusedAge = 14 * 24 * time.Hour

// images makes and keeps what machines boot, by the digest of what it is made of.
type images struct {
	dir string

	life  context.Context // of what is being made
	leave context.CancelFunc
	work  sync.WaitGroup

	mu      sync.Mutex
	checked map[string]stamp    // guarded by mu: files whose digest was right
	digests map[string]measured // guarded by mu: of files that are not ours
	making  map[string]*making  // guarded by mu: by name
}

// making is a file that somebody waits for.
type making struct {
	done chan struct{}
	path string // set before done is closed
	err  error  // ditto
}

func newImages(dir string) *images {
	c := &images{dir: dir, checked: map[string]stamp{}, digests: map[string]measured{}, making: map[string]*making{}}
	c.life, c.leave = context.WithCancel(context.Background())
	return c
}

// close gives up what is being made.
func (c *images) close() {
	c.leave()
	c.work.Wait()
}

// need is get for files that take long. They are made on when ctx ends, so that a
// large template's does not begin anew with everybody who has less time than it
// takes.
func (c *images) need(ctx context.Context, name string, write func(io.Writer) error) (string, error) {
	c.mu.Lock()
	m := c.making[name]
	if m == nil {
		m = &making{done: make(chan struct{})}
		c.making[name] = m
		c.work.Go(func() {
			m.path, m.err = c.get(c.life, name, write)
			c.mu.Lock()
			delete(c.making, name)
			c.mu.Unlock()
			close(m.done)
		})
	}
	c.mu.Unlock()
	select {
	case <-m.done:
		return m.path, m.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// stamp changes when a file's content does; not even root sets a change time.
type stamp struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(path string) (s stamp, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return s, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return stamp{st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// get returns the path of the file called name, which write makes if it is not
// there or not what it was. Another process that makes it is waited for.
func (c *images) get(ctx context.Context, name string, write func(io.Writer) error) (string, error) {
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(c.dir, 0o711); err != nil {
		return "", err
	}
	unlock, err := c.lock(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if c.right(path) {
		now := time.Now()
		_ = os.Chtimes(path+".sha256", now, now) // in use
		return path, nil
	}
	c.prune()
	tmp, err := os.CreateTemp(c.dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name()) // nothing, once it has its name
	defer tmp.Close()
	sum := sha256.New()
	if err := write(io.MultiWriter(contextWriter{ctx, tmp}, sum)); err != nil {
		return "", err
	}
	if err := errors.Join(tmp.Chmod(0o444), tmp.Sync()); err != nil {
		return "", err
	}
	if err := os.WriteFile(path+".sha256", []byte(hex.EncodeToString(sum.Sum(nil))+"\n"), 0o600); err != nil {
		return "", err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return "", err
	}
	if s, err := stampOf(path); err == nil {
		c.mu.Lock()
		c.checked[path] = s
		c.mu.Unlock()
	}
	return path, nil
}

// right reports whether the file has the digest it was made with. Each file is
// read once, and again when it may have changed.
func (c *images) right(path string) bool {
	s, err := stampOf(path)
	if err != nil {
		return false
	}
	c.mu.Lock()
	known := c.checked[path] == s
	c.mu.Unlock()
	if known {
		return true
	}
	want, err := os.ReadFile(path + ".sha256")
	if err != nil {
		return false
	}
	if sum, err := digestFile(path); err != nil || sum != strings.TrimSpace(string(want)) {
		return false
	}
	c.mu.Lock()
	c.checked[path] = s
	c.mu.Unlock()
	return true
}

// measured is a file's digest, when the file was so.
type measured struct {
	at  stamp
	sum string
}

// digestOf is the SHA-256 of one of the files here, which is known, or of another,
// which is read once and when it may have changed.
func (c *images) digestOf(path string) (string, error) {
	if filepath.Dir(path) == c.dir {
		b, err := os.ReadFile(path + ".sha256")
		return strings.TrimSpace(string(b)), err
	}
	s, err := stampOf(path)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	known := c.digests[path]
	c.mu.Unlock()
	if known.at == s {
		return known.sum, nil
	}
	sum, err := digestFile(path)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	c.digests[path] = measured{s, sum}
	c.mu.Unlock()
	return sum, nil
}

func digestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// lock waits for its turn to make a file.
func (c *images) lock(ctx context.Context, name string) (func(), error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// prune removes what was not booted from for long, and what died in the making.
func (c *images) prune() {
	entries, _ := os.ReadDir(c.dir)
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || time.Since(fi.ModTime()) < unusedAge {
			continue
		}
		path := filepath.Join(c.dir, e.Name())
		if name, ok := strings.CutSuffix(path, ".sha256"); ok {
			_, _ = os.Remove(name), os.Remove(path) // best effort: the next time will do
		} else if strings.HasPrefix(e.Name(), ".new-") {
			_ = os.Remove(path)
		}
	}
}

// contextWriter makes a long write end with its context.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w contextWriter) Write(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(b)
}

// nameOf is an image's name from what it is made of.
func nameOf(kind string, parts ...string) string {
	h := sha256.New()
	for _, p := range append([]string{imageFormat, kind}, parts...) {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil))
}

// rootImage is the image of a template.
func (c *images) rootImage(ctx context.Context, r sandbox.Root) (string, error) {
	parts := []string{r.Digest, r.Dir, fmt.Sprint(os.Geteuid())}
	for _, m := range r.Mounts {
		parts = append(parts, m.Source, m.Target)
	}
	return c.need(ctx, nameOf("root", parts...), func(w io.Writer) error {
		return vmimage.WriteRoot(w, vmimage.Tree{Dir: r.Dir, Mounts: r.Mounts, Owner: ownerInside(), MaxBytes: maxImage})
	})
}

// ownerInside maps owners for who is not root, to whom all of a template belongs:
// inside it is root's, except the home.
func ownerInside() func(string, uint32, uint32) (uint32, uint32) {
	if os.Geteuid() == 0 {
		return nil
	}
	return func(path string, _, _ uint32) (uint32, uint32) {
		if path == guest.DefaultHome || strings.HasPrefix(path, guest.DefaultHome+"/") {
			return guest.DefaultUID, guest.DefaultUID
		}
		return 0, 0
	}
}

// runtimeImage is the image of what is at /.firebreak.
func (c *images) runtimeImage(ctx context.Context, dir string) (string, error) {
	var listing bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		s, err := stampOf(path)
		fmt.Fprintf(&listing, "%s %d %d.%d\n", path, s.size, s.mtime.Sec, s.mtime.Nsec)
		return err
	})
	if err != nil {
		return "", err
	}
	return c.get(ctx, nameOf("runtime", listing.String()), func(w io.Writer) error {
		return vmimage.WriteRoot(w, vmimage.Tree{Dir: dir, Owner: func(string, uint32, uint32) (uint32, uint32) { return 0, 0 }})
	})
}

// initialImage is the initial file system: the agent's program and the kernel's
// modules.
func (c *images) initialImage(ctx context.Context, runtime string, files []string) (string, error) {
	agent := filepath.Join(runtime, filepath.Base(guest.AgentPath))
	parts := []string{}
	for _, f := range append([]string{agent}, files...) {
		s, err := stampOf(f)
		if err != nil {
			return "", err
		}
		parts = append(parts, fmt.Sprintf("%s %d %d.%d", f, s.size, s.mtime.Sec, s.mtime.Nsec))
	}
	return c.get(ctx, nameOf("initial", parts...), func(w io.Writer) error {
		program, err := os.ReadFile(agent)
		if err != nil {
			return err
		}
		list := []vmimage.File{{Name: "/init", Mode: 0o755, Data: program}, {Name: "/dev/.keep", Mode: 0o600}}
		for k, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			list = append(list, vmimage.File{Name: fmt.Sprintf("%s/%03d-%s", machine.ModuleDir, k, filepath.Base(f)), Mode: 0o600, Data: b})
		}
		return vmimage.WriteInitial(w, list)
	})
}
