package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Source says what to back up.
type Source struct {
	Data      string     // the data directory
	Version   string     // of this program
	Templates []Template // those of the data directory, to be listed
	// Progress, if not nil, is told how many bytes of how many were read.
	Progress func(done, total int64)
}

// planned is a file to be copied, up to a size.
type planned struct {
	name string // in the archive
	path string
	size int64
	data []byte // what is in it, where the file may be replaced meanwhile; else nil
}

// Write writes a backup of a data directory to w, also while a server owns it.
// The copy of the database, and nothing else, is staged in the directory stage,
// which the caller removes.
//
// Errors: KindNotFound where no server ever kept its state; KindInternal when
// the audit log is damaged, for a backup of it would hide that; KindUnsupported
// when a newer program wrote the database; KindNoSpace.
//
// Cost: everything is read once and the audit log twice; 30 MB of memory.
func Write(ctx context.Context, w io.Writer, stage string, s Source) (Manifest, error) {
	m, err := write(ctx, w, stage, s)
	return m, sandbox.Wrap("backup", s.Data, err)
}

func write(ctx context.Context, w io.Writer, stage string, s Source) (Manifest, error) {
	m := Manifest{Format: Format, Firebreak: s.Version, Created: time.Now().UTC(), Templates: s.Templates}
	// State first: evidence is only ever ahead of it.
	state := filepath.Join(stage, stateName)
	var err error
	if m.Schema, err = store.Snapshot(ctx, filepath.Join(s.Data, stateName), state); err != nil {
		return m, err
	}
	failpoint.Hit("backup/after-state")
	plan, heads, err := s.plan(state)
	if err != nil {
		return m, err
	}
	failpoint.Hit("backup/planned")
	m.Count = len(plan)
	for _, p := range plan {
		m.Bytes += p.size
	}
	z, err := zstd.NewWriter(w)
	if err != nil {
		return m, err
	}
	a := &archiver{tar: tar.NewWriter(z), at: m.Created, total: m.Bytes, tell: s.Progress}
	err = a.json(headerName, m)
	for _, p := range plan {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = a.file(p)
		}
	}
	m.Bytes, m.Count, m.Members, m.Audit = a.done, len(a.members), a.members, heads
	if err == nil {
		err = a.json(manifestName, m)
	}
	if err == nil {
		err = a.tar.Close()
	}
	if e := z.Close(); err == nil { // always: it has goroutines
		err = e
	}
	return m, err
}

// plan lists what to copy, in the order it has to be looked at.
func (s Source) plan(state string) (plan []planned, heads map[string]Head, err error) {
	fi, err := os.Stat(state)
	if err != nil {
		return nil, nil, err
	}
	plan = []planned{{name: stateName, path: state, size: fi.Size()}}
	plan, heads, err = s.planAudit(plan)
	if err != nil {
		return nil, nil, err
	}
	for _, dir := range []string{"events", "runs"} {
		root := filepath.Join(s.Data, dir)
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				plan, err = s.add(plan, p, d)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // purged meanwhile, or there never was any
			}
			return err
		})
		if err != nil {
			return nil, nil, err
		}
	}
	if fi, err := os.Lstat(filepath.Join(s.Data, configName)); err == nil && fi.Mode().IsRegular() {
		plan = append(plan, planned{name: configName, path: filepath.Join(s.Data, configName), size: fi.Size()})
	}
	return plan, heads, nil
}

// add plans a file if it is one of ours.
func (s Source) add(plan []planned, p string, d fs.DirEntry) ([]planned, error) {
	rel, err := filepath.Rel(s.Data, p)
	if err != nil {
		return plan, err
	}
	name := filepath.ToSlash(rel)
	if !allowed(name) {
		return plan, nil
	}
	fi, err := d.Info()
	if err != nil {
		return plan, err
	}
	return append(plan, planned{name: name, path: p, size: fi.Size()}), nil
}

// planAudit plans what of each log is complete, and the key that signs them:
// with it, what is restored goes on as the same log.
func (s Source) planAudit(plan []planned) ([]planned, map[string]Head, error) {
	heads := map[string]Head{}
	dirs, err := os.ReadDir(filepath.Join(s.Data, "audit"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return plan, heads, err
	}
	for _, d := range dirs {
		if !d.IsDir() || !auditDir.MatchString(d.Name()) {
			continue
		}
		dir := filepath.Join(s.Data, "audit", d.Name())
		files, head, err := audit.Prefix(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // of a run that did nothing
		}
		if err != nil {
			return plan, heads, err
		}
		if head.Position == 0 {
			continue // nothing was recorded yet
		}
		heads[d.Name()] = headOf(head)
		for _, f := range files {
			plan = append(plan, planned{path.Join("audit", d.Name(), f.Name), filepath.Join(dir, filepath.FromSlash(f.Name)), f.Size, f.Data})
		}
	}
	// Keys after what they signed: one that is rotated meanwhile knows the one
	// before it.
	for _, d := range dirs {
		if !d.Type().IsRegular() || !auditKey.MatchString(d.Name()) {
			continue
		}
		p := filepath.Join(s.Data, "audit", d.Name())
		b, err := os.ReadFile(p)
		if err != nil {
			return plan, heads, err
		}
		plan = append(plan, planned{path.Join("audit", d.Name()), p, int64(len(b)), b})
	}
	return plan, heads, nil
}

// archiver writes members and remembers them.
type archiver struct {
	tar         *tar.Writer
	at          time.Time
	members     []Member
	done, total int64
	tell        func(done, total int64)
}

func (a *archiver) header(name string, size int64) error {
	return a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: a.at.Truncate(time.Second)})
}

// json writes a member that describes the others.
func (a *archiver) json(name string, m Manifest) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", " ")
	err := e.Encode(m)
	if err == nil {
		err = a.header(name, int64(b.Len()))
	}
	if err == nil {
		_, err = a.tar.Write(b.Bytes())
	}
	return err
}

// file copies p. One that is gone was purged meanwhile; one that is shorter was
// replaced by a younger one of that name.
func (a *archiver) file(p planned) error {
	if p.data != nil {
		return a.copy(p.name, int64(len(p.data)), bytes.NewReader(p.data))
	}
	f, err := os.Open(p.path)
	if errors.Is(err, fs.ErrNotExist) && path.Dir(p.name) != "." {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return a.copy(p.name, min(p.size, fi.Size()), f)
}

func (a *archiver) copy(name string, size int64, from io.Reader) error {
	if err := a.header(name, size); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(a.tar, h), from, size); err != nil {
		return err
	}
	a.members = append(a.members, Member{name, size, hexOf(h.Sum(nil))})
	a.done += size
	if a.tell != nil {
		a.tell(a.done, a.total)
	}
	failpoint.Hit("backup/after-member")
	return nil
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
