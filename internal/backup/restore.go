package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Target says how to restore.
type Target struct {
	Principal string // who does it, for the audit log
	// Progress, if not nil, is told how many bytes of how many were written.
	Progress func(done, total int64)
}

// Restore makes the data directory dir from a backup. dir must not exist or be
// empty. It appears whole: every digest is checked, the database migrated, the
// audit log verified and everything on stable storage before it gets its name.
// What an attempt that was killed left beside it is removed by the next.
//
// Sandboxes that were alive when the backup was made are recorded as lost.
//
// Errors: KindConflict when dir has something in it; KindInvalid for what is no
// backup, or a damaged or hostile one; KindUnsupported for one of a newer
// program; KindNoSpace, before anything is written.
func Restore(ctx context.Context, r io.Reader, dir string, t Target) (m Manifest, lost int, err error) {
	const op = "restore"
	defer func() { err = sandbox.Wrap(op, dir, err) }()
	dir, err = filepath.Abs(dir)
	if err != nil {
		return m, 0, err
	}
	if err := vacant(dir); err != nil {
		return m, 0, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return m, 0, err
	}
	stage, err := newStage(dir)
	if err != nil {
		return m, 0, err
	}
	defer func() { err = errors.Join(err, stage.remove()) }()
	failpoint.Hit("restore/staged")
	if m, err = unpack(ctx, r, stage.dir, t); err != nil {
		return m, 0, err
	}
	failpoint.Hit("restore/unpacked")
	if lost, m.Sealed, err = settle(ctx, stage.dir, m, t); err != nil {
		return m, lost, err
	}
	failpoint.Hit("restore/settled")
	if err := syncAll(stage.dir, m.Count); err != nil {
		return m, lost, err
	}
	failpoint.Hit("restore/synced")
	if err := syscall.Rename(stage.dir, dir); err != nil { // os.Rename refuses an empty directory, too
		if e := vacant(dir); e != nil { // somebody was faster
			err = e
		}
		return m, lost, err
	}
	failpoint.Hit("restore/renamed")
	return m, lost, syncPath(filepath.Dir(dir))
}

// vacant refuses a directory that has something in it.
func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return sandbox.Errorf("restore", sandbox.KindConflict, "the directory is not empty").WithID(dir).
		WithHint("a backup is never merged into anything: choose another directory with --data, or move this one away")
}

// invalid says what is wrong with an archive.
func invalid(format string, args ...any) error {
	return sandbox.Errorf("restore", sandbox.KindInvalid, format, args...).
		WithHint("it is no backup, or a damaged one: nothing was restored from it")
}

// unpacker reads an archive into a directory.
type unpacker struct {
	root    *os.Root
	tar     *tar.Reader
	head    Manifest // of the header
	members []Member
	done    int64
	tell    func(done, total int64)
	made    map[string]bool // directories
}

// unpack extracts the archive below dir and checks all of it against its
// manifest. Nothing in it is believed before: not a name, a type, nor a size.
func unpack(ctx context.Context, r io.Reader, dir string, t Target) (m Manifest, err error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(2*maxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return m, err
	}
	defer z.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return m, err
	}
	defer root.Close()
	u := &unpacker{root: root, tar: tar.NewReader(z), tell: t.Progress, made: map[string]bool{".": true}}
	if err := u.begin(dir); err != nil {
		return m, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		h, err := u.next()
		if err != nil {
			return m, err
		}
		if h.Name == manifestName {
			if m, err = u.finish(h); err == nil {
				err = drained(z)
			}
			return m, err
		}
		if err := u.member(h); err != nil {
			return m, err
		}
		failpoint.Hit("restore/after-member")
	}
}

// maxTrailer bounds what may follow the last member: tar's empty blocks.
const maxTrailer = 1 << 20

// drained reads to the end of the archive, where its checksum is, and refuses
// whatever else may be there.
func drained(z io.Reader) error {
	rest, err := io.ReadAll(io.LimitReader(z, maxTrailer+1))
	switch {
	case err != nil:
		return invalid("%w", err)
	case len(rest) > maxTrailer || len(bytes.TrimLeft(rest, "\x00")) > 0:
		return invalid("something follows its last member")
	}
	return nil
}

// next returns the next member's header: of a plain file.
func (u *unpacker) next() (*tar.Header, error) {
	h, err := u.tar.Next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, invalid("it ends before its manifest")
	case err != nil:
		return nil, invalid("%w", err)
	case h.Typeflag != tar.TypeReg || h.Size < 0:
		return nil, invalid("%.200q is not a plain file", h.Name)
	}
	return h, nil
}

// begin reads the header and decides whether to go on.
func (u *unpacker) begin(dir string) error {
	h, err := u.next()
	if err != nil {
		return err
	}
	if h.Name != headerName {
		return invalid("it begins with %.200q", h.Name)
	}
	if err := u.decode(h, maxHeader, &u.head); err != nil {
		return err
	}
	m := u.head
	switch {
	case m.Format > Format:
		return sandbox.Errorf("restore", sandbox.KindUnsupported, "the backup has format %d, this program knows up to %d", m.Format, Format).
			WithHint("restore it with firebreak %.40s or newer", m.Firebreak)
	case m.Schema > store.Schema():
		return sandbox.Errorf("restore", sandbox.KindUnsupported, "the backup has schema %d, this program knows up to %d", m.Schema, store.Schema()).
			WithHint("restore it with firebreak %.40s or newer", m.Firebreak)
	case m.Format < 1 || m.Schema < 1 || m.Bytes < 0 || m.Count < 1 || m.Count > maxMembers:
		return invalid("its header makes no sense")
	}
	// Room for the files, and for a database that is migrated with the copy
	// from before.
	need := m.Bytes + m.Bytes/20 + int64(m.Count)*4096 + 16<<20
	if left, err := free(dir); err != nil || need < m.Bytes || left < need {
		return errors.Join(err, sandbox.Errorf("restore", sandbox.KindNoSpace, "%s are needed and %s are free", sandbox.FormatSize(need), sandbox.FormatSize(left)).
			WithHint("free some, or restore to another disk"))
	}
	return nil
}

func (u *unpacker) decode(h *tar.Header, limit int64, m *Manifest) error {
	if h.Size > limit {
		return invalid("%s has %d bytes", h.Name, h.Size)
	}
	d := json.NewDecoder(io.LimitReader(u.tar, h.Size))
	if err := d.Decode(m); err != nil {
		return invalid("%s: %w", h.Name, err)
	}
	return nil
}

// member extracts one file.
func (u *unpacker) member(h *tar.Header) error {
	if !allowed(h.Name) {
		return invalid("%.200q does not belong into a backup", h.Name)
	}
	if h.Size > u.head.Bytes-u.done || len(u.members) >= u.head.Count {
		return invalid("it holds more than it says")
	}
	if err := u.mkdir(path.Dir(h.Name)); err != nil {
		return err
	}
	f, err := u.root.OpenFile(filepath.FromSlash(h.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return invalid("%.200q is there twice", h.Name)
	}
	if err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), u.tar)
	if e := f.Close(); err == nil && e != nil {
		return e
	}
	if err != nil || n != h.Size {
		var write *os.PathError
		if errors.As(err, &write) { // ours, not the archive's
			return err
		}
		return invalid("%.200q: %w", h.Name, errors.Join(err, fmt.Errorf("%d of %d bytes", n, h.Size)))
	}
	u.members = append(u.members, Member{h.Name, n, hexOf(sum.Sum(nil))})
	if u.done += n; u.tell != nil {
		u.tell(u.done, u.head.Bytes)
	}
	return nil
}

// mkdir makes a directory and those above it. A file of that name is in the
// way: two members that cannot both be there.
func (u *unpacker) mkdir(dir string) error {
	if u.made[dir] {
		return nil
	}
	if err := u.mkdir(path.Dir(dir)); err != nil {
		return err
	}
	if err := u.root.Mkdir(filepath.FromSlash(dir), 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return invalid("%.200q is a file and a directory", dir)
		}
		return err
	}
	u.made[dir] = true
	return nil
}

// finish compares what was extracted with the manifest, which must be the last
// member.
func (u *unpacker) finish(h *tar.Header) (m Manifest, err error) {
	if err := u.decode(h, min(maxManifest, maxHeader+6000*int64(u.head.Count)), &m); err != nil {
		return m, err
	}
	if !slices.Equal(m.Members, u.members) {
		for i, got := range u.members {
			if i >= len(m.Members) || m.Members[i] != got {
				return m, invalid("%.200q is not what was put in", got.Name)
			}
		}
		return m, invalid("%d members are missing", len(m.Members)-len(u.members))
	}
	if m.Format != u.head.Format || m.Schema != u.head.Schema || !m.Created.Equal(u.head.Created) {
		return m, invalid("its header and manifest differ")
	}
	if len(u.members) == 0 || u.members[0].Name != stateName {
		return m, invalid("it has no %s", stateName)
	}
	if _, err := u.tar.Next(); !errors.Is(err, io.EOF) {
		return m, invalid("something follows its manifest")
	}
	return m, nil
}
