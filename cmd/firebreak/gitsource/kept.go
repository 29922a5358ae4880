package gitsource

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// keptPrefix begins the names of directories that hold what was fetched.
const keptPrefix = "firebreak-fetch-"

// kept is a bare repository in a temporary directory, for as long as it is read.
// It holds a pack and nothing that a server could choose besides. Its lock lives
// as long as its process, so that what a killed one has left can be told and is
// removed by the next fetch.
type kept struct {
	dir  string
	lock *os.File // the directory
}

func keep(digits int) (_ *kept, err error) {
	sweep()
	k := &kept{}
	if k.dir, err = os.MkdirTemp("", keptPrefix); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			k.remove()
		}
	}()
	if k.lock, err = lock(k.dir); err != nil {
		return nil, err
	}
	config := "[core]\nbare = true\nrepositoryFormatVersion = 0\n"
	if digits == 64 {
		config = "[core]\nbare = true\nrepositoryFormatVersion = 1\n[extensions]\nobjectFormat = sha256\n"
	}
	err = errors.Join(os.MkdirAll(filepath.Join(k.dir, "objects", "pack"), 0o700), os.Mkdir(filepath.Join(k.dir, "refs"), 0o700))
	for name, text := range map[string]string{"HEAD": "ref: refs/heads/none\n", "config": config} {
		if err == nil {
			err = os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600)
		}
	}
	return k, err
}

// lock takes a directory, unless a process that lives has it.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// remove may be called on nil.
func (k *kept) remove() {
	if k == nil {
		return
	}
	_ = os.RemoveAll(k.dir)
	if k.lock != nil {
		_ = k.lock.Close()
	}
}

// sweep removes what processes have left that were killed. One that is new may not
// have its lock yet.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), keptPrefix+"*"))
	for _, dir := range dirs {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() || time.Since(st.ModTime()) < time.Minute {
			continue
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
			continue
		}
		if f, err := lock(dir); err == nil {
			(&kept{dir, f}).remove()
		}
	}
}

// allocLimit is what git may ask for at once while it reads a stranger's pack: the
// size of the largest object that may be a delta. Others it reads in pieces. It
// needs four times that for the worst of packs.
const allocLimit = "128m"

// index has git take a pack apart: it resolves deltas, computes the digest of each
// object and looks for collisions. Nothing is checked out and no content is
// interpreted, which is why there is no fsck either.
//
// Errors: errTooLarge or what reading has, KindTooLarge, KindNoSpace, KindInvalid.
func (k *kept) index(ctx context.Context, s *server, pack io.Reader) error {
	var header [12]byte
	if _, err := io.ReadFull(pack, header[:]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if string(header[:4]) != "PACK" {
		return s.errorf(sandbox.KindProtocol, "what the server sends is no pack")
	}
	if n := binary.BigEndian.Uint32(header[8:]); n > s.limits.objects {
		return s.errorf(sandbox.KindTooLarge, "the commit has %d objects, more than %d", n, s.limits.objects)
	}
	r := &repository{path: s.url, dir: k.dir, common: k.dir, kept: k}
	cmd, err := r.command(ctx, "index-pack", "--stdin", "--threads=1")
	if err != nil {
		return err
	}
	var said head
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return sandbox.Wrap("--git", s.url, err)
	}
	from := &reader{r: io.MultiReader(bytes.NewReader(header[:]), pack)}
	_, err = io.Copy(in, from)
	if from.err != nil {
		_ = cmd.Process.Kill() // it waits for the rest
	}
	_ = in.Close()
	ended := cmd.Wait()
	switch words := strings.Join(strings.Fields(string(said.buf)), " "); {
	case from.err != nil:
		return from.err
	case strings.Contains(words, "No space left"):
		return s.errorf(sandbox.KindNoSpace, "git cannot keep it: %s", words).WithHint("make room in %s, or set TMPDIR", os.TempDir())
	case strings.Contains(words, "attempting to allocate"):
		return s.errorf(sandbox.KindTooLarge, "an object needs too much memory: %s", words)
	case ended != nil:
		return s.errorf(sandbox.KindInvalid, "the pack is damaged: git says %q", words)
	case err != nil:
		return s.errorf(sandbox.KindInvalid, "the server sends more than a pack")
	}
	return nil
}

// reader tells errors of what is read from those of what is written to.
type reader struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (r *reader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// arrived is the commit that was fetched.
func (r *repository) arrived(ref string) (string, error) {
	got, err := r.lookup(r.wanted)
	if err != nil {
		return "", err
	}
	commit, err := r.lookup(r.wanted + "^{commit}")
	if err != nil {
		return "", err
	}
	exact := strings.EqualFold(ref, r.wanted)
	switch {
	case got.id != r.wanted:
		return "", r.errorf(sandbox.KindInvalid, "the server did not send %s, which was asked for", r.wanted)
	case commit.kind != "commit", exact && got.kind != "commit":
		return "", r.errorf(sandbox.KindNotFound, "%s is no commit", ref).WithHint("name a branch, a tag or a commit")
	}
	return commit.id, nil
}
