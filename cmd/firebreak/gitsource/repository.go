package gitsource

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// repository reads objects by git cat-file. Sizes are asked for before contents,
// so that git never has to hold an object that is over a limit.
type repository struct {
	path   string // for people
	dir    string // the git directory
	common string // the git directory that has the objects; dir but in a worktree
	info   *batch
	data   *batch

	// Of one that was fetched:
	kept   *kept
	wanted string // the id that was asked for
	from   string // where its URL redirected to, if it did
}

// open finds the git directory of path and starts reading it. Only path itself is
// looked at, not what it lies in.
//
// What path says about where objects are is believed only within path, or where
// the other side agrees (a linked worktree): a directory from a stranger must not
// name another repository of this machine, whose files would be brought instead.
func open(ctx context.Context, path string) (*repository, error) {
	top, err := filepath.Abs(path)
	if err == nil {
		top, err = filepath.EvalSymlinks(top)
	}
	if err != nil {
		return nil, sandbox.Errorf("--git", sandbox.KindInvalid, "there is no such directory").WithID(path).WithHint(usage)
	}
	r := &repository{path: path}
	if err := r.find(top); err != nil {
		return nil, err
	}
	if err := r.objectsAreHere(); err != nil {
		return nil, err
	}
	if r.info, err = r.start(ctx, "--batch-check"); err != nil {
		return nil, err
	}
	if r.data, err = r.start(ctx, "--batch"); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *repository) close() {
	r.info.close()
	r.data.close()
	r.kept.remove()
}

// errorf has a hint for what is wrong inside a repository; other errors set theirs.
func (r *repository) errorf(kind sandbox.Kind, format string, a ...any) *sandbox.Error {
	hint := "`git fsck` there may tell more; be careful with this repository"
	if r.kept != nil {
		hint = "be careful with this repository, and with its server"
	}
	return sandbox.Errorf("--git", kind, format, a...).WithID(r.path).WithHint("%s", hint)
}

func (r *repository) find(top string) error {
	none := r.errorf(sandbox.KindInvalid, "is not a git repository").WithHint("name its top directory, or a bare repository")
	r.dir = filepath.Join(top, ".git")
	st, err := os.Lstat(r.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if !exists(filepath.Join(top, "HEAD")) || !exists(filepath.Join(top, "objects")) {
			return none
		}
		r.dir = top // a bare one
	case err != nil:
		return none
	case st.Mode().IsRegular():
		return r.worktree(top)
	case !st.IsDir():
		return r.errorf(sandbox.KindInvalid, ".git is a link").WithHint("name the directory that it points to")
	}
	if exists(filepath.Join(r.dir, "commondir")) {
		return r.errorf(sandbox.KindInvalid, "its objects are in another repository").WithHint("name that one")
	}
	r.common = r.dir
	return nil
}

// worktree follows .git, a file, to DIR/worktrees/NAME, if that knows of it.
func (r *repository) worktree(top string) error {
	bad := r.errorf(sandbox.KindInvalid, ".git points to a directory that does not point back").
		WithHint("name the repository itself; of a submodule, its directory in .git/modules")
	dir, err := pointer(top, filepath.Join(top, ".git"), "gitdir: ")
	if err != nil {
		return bad
	}
	back, err := pointer(dir, filepath.Join(dir, "gitdir"), "")
	if err != nil || back != filepath.Join(top, ".git") {
		return bad
	}
	common, err := pointer(dir, filepath.Join(dir, "commondir"), "")
	if err != nil || filepath.Join(common, "worktrees") != filepath.Dir(dir) {
		return bad
	}
	r.dir, r.common = dir, common
	return nil
}

// pointer reads a file that holds a path, relative to dir. A pipe would be waited for.
func pointer(dir, file, prefix string) (string, error) {
	if st, err := os.Lstat(file); err != nil || !st.Mode().IsRegular() {
		return "", errors.Join(err, errors.New("not a file"))
	}
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 8192))
	if err != nil {
		return "", err
	}
	to, ok := strings.CutPrefix(strings.TrimRight(string(b), "\r\n"), prefix)
	if !ok || to == "" {
		return "", errors.New("no path in it")
	}
	if !filepath.IsAbs(to) {
		to = filepath.Join(dir, to)
	}
	return filepath.EvalSymlinks(to)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// objectsAreHere refuses objects that are borrowed from elsewhere.
func (r *repository) objectsAreHere() error {
	objects := filepath.Join(r.common, "objects")
	if st, err := os.Lstat(filepath.Join(objects, "info", "alternates")); err == nil && (st.Size() > 0 || !st.Mode().IsRegular()) {
		return r.errorf(sandbox.KindUnsupported, "it borrows objects of another repository").
			WithHint("name that one, or clone it once more without --shared and --reference")
	}
	return filepath.WalkDir(objects, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return r.errorf(sandbox.KindInvalid, "its objects cannot be read: %w", err).WithHint("is it a repository, and yours to read?")
		case !d.IsDir() && !d.Type().IsRegular():
			return r.errorf(sandbox.KindInvalid, "%q among its objects is neither a file nor a directory", filepath.Base(name)).
				WithHint("clone it, and name the clone")
		}
		return nil
	})
}

// command is git with nothing that a repository, or whoever calls us, could have
// it do besides reading: no hooks, no helpers, no protocols, no replaced objects.
// It is told where the repository is and looks for none.
func (r *repository) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	git, err := exec.LookPath("git")
	if err != nil {
		return nil, r.errorf(sandbox.KindUnsupported, "git is needed to read repositories, and is not here").WithHint("install git")
	}
	cmd := exec.CommandContext(ctx, git, append([]string{"--no-pager", "--no-replace-objects", "-c", "core.hooksPath=" + os.DevNull,
		"-c", "core.fsmonitor=false", "-c", "protocol.allow=never", "-c", "core.bigFileThreshold=1m"}, args...)...)
	cmd.Dir = r.dir
	cmd.Env = []string{"GIT_DIR=" + r.dir, "GIT_COMMON_DIR=" + r.common, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull,
		"GIT_ATTR_NOSYSTEM=1", "GIT_ALLOW_PROTOCOL=", "GIT_NO_LAZY_FETCH=1", "GIT_NO_REPLACE_OBJECTS=1", "GIT_OPTIONAL_LOCKS=0",
		"GIT_TERMINAL_PROMPT=0", "LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	if r.kept != nil {
		cmd.Env = append(cmd.Env, "GIT_ALLOC_LIMIT="+allocLimit)
	}
	return cmd, nil
}

// batch is one git cat-file that answers questions, one at a time.
type batch struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs head
}

func (r *repository) start(ctx context.Context, mode string) (*batch, error) {
	cmd, err := r.command(ctx, "cat-file", mode)
	if err != nil {
		return nil, err
	}
	b := &batch{cmd: cmd}
	cmd.Stderr = &b.errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		b.in, err = cmd.StdinPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, sandbox.Wrap("--git", r.path, err)
	}
	b.out = bufio.NewReaderSize(out, 64<<10)
	return b, nil
}

// close ends git, whatever it is at.
func (b *batch) close() {
	if b == nil {
		return
	}
	_ = b.cmd.Process.Kill()
	_ = b.in.Close()
	_ = b.cmd.Wait()
}

// object is the answer to a question. An empty id: there is no such object.
type object struct {
	id, kind string
	size     int64
}

func (r *repository) ask(b *batch, name string) (object, error) {
	if _, err := io.WriteString(b.in, name+"\n"); err != nil {
		return object{}, r.broken(b, err)
	}
	line, err := b.out.ReadSlice('\n')
	if err != nil {
		return object{}, r.broken(b, err)
	}
	words := strings.Fields(string(line))
	if len(words) == 2 && (words[1] == "missing" || words[1] == "ambiguous") {
		return object{}, nil
	}
	if len(words) == 3 {
		size, err := strconv.ParseInt(words[2], 10, 64)
		if _, herr := newHash(words[0]); err == nil && herr == nil && size >= 0 {
			return object{words[0], words[1], size}, nil
		}
	}
	return object{}, r.errorf(sandbox.KindInvalid, "git answered %q", strings.TrimSpace(string(line)))
}

// broken is what git said when it ended, which is mostly about a damaged or
// unknown form of repository.
func (r *repository) broken(b *batch, err error) error {
	_ = b.in.Close()
	_ = b.cmd.Wait()
	if said := strings.Join(strings.Fields(string(b.errs.buf)), " "); said != "" {
		err = errors.New(said)
	}
	return r.errorf(sandbox.KindInvalid, "git cannot read it: %w", err)
}

// lookup describes the commit, or whatever, that name is.
func (r *repository) lookup(name string) (object, error) { return r.ask(r.info, name) }

// copy writes the object id to w and checks that it is that object.
// Errors: KindTooLarge over limit, KindInvalid.
func (r *repository) copy(w io.Writer, id, kind string, limit int64) (int64, error) {
	o, err := r.lookup(id)
	switch {
	case err != nil:
		return 0, err
	case o.id == "":
		return 0, r.errorf(sandbox.KindInvalid, "the %s %s is missing", kind, id).WithHint("a partial clone lacks objects: clone it whole")
	case o.id != id || o.kind != kind:
		return 0, r.errorf(sandbox.KindInvalid, "%s is not a %s but a %s", id, kind, o.kind)
	case o.size > limit:
		return 0, errTooLarge
	}
	if again, err := r.ask(r.data, id); err != nil {
		return 0, err
	} else if again != o {
		return 0, r.errorf(sandbox.KindInvalid, "%s %s changed while it was read", kind, id)
	}
	h, err := newHash(id)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(h, "%s %d\x00", kind, o.size)
	disk := &writer{w: w}
	if _, err := io.CopyN(io.MultiWriter(h, disk), r.data.out, o.size); err != nil {
		if disk.err != nil {
			return 0, sandbox.Wrap("--git", r.path, disk.err)
		}
		return 0, r.broken(r.data, err)
	}
	if c, err := r.data.out.ReadByte(); err != nil || c != '\n' {
		return 0, r.broken(r.data, errors.Join(err, errors.New("an object ends too late")))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != id {
		return 0, r.errorf(sandbox.KindInvalid, "the %s %s is damaged: it has the digest %s", kind, id, got)
	}
	return o.size, nil
}

// read is copy into memory.
func (r *repository) read(id, kind string, limit int64) ([]byte, error) {
	var b bytes.Buffer
	_, err := r.copy(&b, id, kind, limit)
	return b.Bytes(), err
}

var errTooLarge = errors.New("over the limit")

// writer tells errors of what is written to from those of git.
type writer struct {
	w   io.Writer
	err error
}

// Write implements io.Writer.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.err = err
	return n, err
}

// newHash is the digest that object ids of this length are.
func newHash(id string) (hash.Hash, error) {
	if _, err := hex.DecodeString(id); err == nil {
		switch len(id) {
		case 2 * sha1.Size:
			return sha1.New(), nil
		case 2 * sha256.Size:
			return sha256.New(), nil
		}
	}
	return nil, sandbox.Errorf("--git", sandbox.KindInvalid, "%q is not the id of an object", id)
}

// head keeps the beginning of what git says, at most 4 KiB.
type head struct{ buf []byte }

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.buf = append(h.buf, p[:min(len(p), 4096-len(h.buf))]...)
	return len(p), nil
}
