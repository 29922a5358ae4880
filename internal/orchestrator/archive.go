package orchestrator

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/archive"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Written counts what an archive brought.
type Written struct{ Files, Directories, Links, Bytes int64 }

// WriteArchive unpacks a tar file into the directory dir, the user's home if that
// is empty, and makes it. Each file is stored whole or not at all, in order; links
// come last, so that no file is written through one of the archive's own. The first
// error ends it, and what came before stays.
//
// It is recorded before, and with the digest of all that was read after.
func (o *Orchestrator) WriteArchive(ctx context.Context, who Caller, ref, dir, user string, r io.Reader) (Written, error) {
	dir = pick(dir, ".")
	a, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.write", Object: dir, Detail: map[string]string{"archive": "tar"}}, nil)
	if err != nil {
		return Written{}, err
	}
	defer a.done()
	d := newDigester(r)
	defer d.Close()
	u := &unpacking{s: a.s, dir: dir, user: user, in: archive.NewReader(d)}
	err = u.all(ctx)
	if err == nil {
		err = drain(d)
	}
	if err = a.settled(ctx, dir, err); err != nil {
		return Written{}, u.sofar(err)
	}
	rec, n := a.r, u.n
	rec.Outcome, rec.Digest = sandbox.OutcomeDone, d.Close()
	rec.Detail = map[string]string{"archive": "tar", "bytes": strconv.FormatInt(d.n, 10), "files": strconv.FormatInt(n.Files, 10),
		"directories": strconv.FormatInt(n.Directories, 10), "links": strconv.FormatInt(n.Links, 10)}
	err = a.l.record(context.WithoutCancel(ctx), who, rec)
	failpoint.Hit("file/before-answer")
	return n, err
}

// maxPadding is what may follow the end of an archive: tar fills up its last record.
const maxPadding = 1 << 20

// drain reads what follows the end of an archive.
func drain(r io.Reader) error {
	n, err := io.CopyN(io.Discard, r, maxPadding)
	if err == io.EOF {
		return nil
	}
	if err == nil {
		err = sandbox.Errorf("unpack", sandbox.KindInvalid, "more than %d bytes follow the end of the archive", n)
	}
	return err
}

// unpacking stores the entries of an archive.
type unpacking struct {
	s         *guest.Session
	dir, user string
	in        *archive.Reader
	links     []archive.Entry
	held      int // bytes in links
	n         Written
	last      string // that was stored
}

// maxHeldLinks bounds the links that wait for the end.
const maxHeldLinks = 4 << 20

func (u *unpacking) all(ctx context.Context) error {
	if err := u.s.Mkdir(ctx, u.dir, u.user, 0o755, true); err != nil {
		return err
	}
	for {
		e, err := u.in.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = u.entry(ctx, e)
		}
		if err != nil {
			return err
		}
	}
	for _, e := range u.links {
		if err := u.s.Symlink(ctx, e.Target, u.at(e), u.user); err != nil {
			return named(e.Path, err)
		}
		u.n.Links++
		u.last = e.Path
	}
	return nil
}

func (u *unpacking) at(e archive.Entry) string { return path.Join(u.dir, e.Path) }

func (u *unpacking) entry(ctx context.Context, e archive.Entry) error {
	switch e.Mode.Type() {
	case fs.ModeSymlink:
		if u.held += len(e.Path) + len(e.Target); u.held > maxHeldLinks {
			return sandbox.Errorf("unpack", sandbox.KindTooLarge, "the archive's links are longer than %s together", sandbox.FormatSize(maxHeldLinks))
		}
		u.links = append(u.links, e)
		return nil
	case fs.ModeDir:
		if err := u.s.Mkdir(ctx, u.at(e), u.user, e.Mode.Perm()|0o700, true); err != nil { // or nothing could be put into it
			return named(e.Path, err)
		}
		u.n.Directories++
	default:
		mode := e.Mode.Perm()
		if mode == 0 {
			mode = 0o600 // 0 stands for the default, which others may read
		}
		info, err := u.s.WriteFile(ctx, u.at(e), u.in, guest.WriteOptions{User: u.user, Mode: mode, Parents: true})
		if err != nil {
			return named(e.Path, err)
		}
		u.n.Files++
		u.n.Bytes += info.Size
	}
	u.last = e.Path
	return nil
}

// named says at which entry something went wrong.
func named(name string, err error) error {
	var e *sandbox.Error
	if !errors.As(err, &e) || e.ID != "" || e.Op == "unpack" {
		return err
	}
	told := *e
	told.ID = clip(name)
	return &told
}

// sofar adds to err how far it went.
func (u *unpacking) sofar(err error) error {
	var e *sandbox.Error
	if u.last == "" || !errors.As(err, &e) {
		return err
	}
	told := *e
	told.Hint = strings.TrimPrefix(told.Hint+"; ", "; ") + "what came before it is stored, last " + clip(strings.ToValidUTF8(u.last, "?"))
	return &told
}

// ReadArchive writes the directory dir, the user's home if that is empty, to w as a
// tar file: its files, its directories, and the symbolic links that stay in it,
// whoever unpacks it. It tells left of everything else, as path and reason. An error
// before anything was written is one about dir; later ones say that the archive is
// not whole.
//
// What the guest says about its files is its own claim. Names and links are checked,
// their number and depth are bounded, memory does not depend on either.
func (o *Orchestrator) ReadArchive(ctx context.Context, who Caller, ref, dir, user string, w io.Writer, left func(string) error) error {
	dir = pick(dir, ".")
	a, err := o.access(ctx, who, ref, user, sandbox.Record{Class: sandbox.Flow, Action: "file.read", Object: dir, Detail: map[string]string{"archive": "tar"}}, nil)
	if err != nil {
		return err
	}
	defer a.done()
	p := &packing{s: a.s, dir: dir, user: user, out: archive.NewWriter(w), left: left}
	if err = p.tree(ctx, ""); err == nil {
		err = p.out.Close()
	}
	return a.settled(ctx, dir, err)
}

// packing reads a tree of a guest.
type packing struct {
	s         *guest.Session
	dir, user string
	out       *archive.Writer
	left      func(string) error
	entries   int
	held      int // bytes of names of directories that wait
}

// maxHeldNames bounds the directories that wait to be read.
const maxHeldNames = 8 << 20

func (p *packing) tree(ctx context.Context, rel string) error {
	list, more, err := p.s.List(ctx, path.Join(p.dir, rel), guest.ListOptions{User: p.user, Depth: 1, Max: max(1, archive.MaxEntries-p.entries)})
	switch {
	case rel != "" && passing(err):
		return p.leave(rel, reasonText(err))
	case err != nil:
		return err
	case more || p.entries+len(list) > archive.MaxEntries:
		return sandbox.Errorf("pack", sandbox.KindTooLarge, "the directory holds more than %d entries", archive.MaxEntries).
			WithHint("name directories below it, or pack it with tar in the sandbox")
	}
	p.entries += len(list)
	var dirs []string
	held := 0
	for _, e := range list {
		down, err := p.entry(ctx, rel, e)
		if err != nil {
			return err
		}
		if down {
			dirs, held = append(dirs, e.Path), held+len(e.Path)
		}
	}
	list = nil // of a large directory; what is below it may be large, too
	if p.held += held; p.held > maxHeldNames {
		return sandbox.Errorf("pack", sandbox.KindTooLarge, "the names of its directories are too long together").WithHint("name directories below it")
	}
	for _, name := range dirs {
		if err := p.tree(ctx, path.Join(rel, name)); err != nil {
			return err
		}
	}
	p.held -= held
	return nil
}

// passing reports whether err is about one file of many.
func passing(err error) bool {
	switch sandbox.KindOf(err) {
	case sandbox.KindDenied, sandbox.KindNotFound, sandbox.KindNotDirectory, sandbox.KindIsDirectory, sandbox.KindInvalid:
		return true
	}
	return false
}

func (p *packing) leave(name, why string) error { return p.left(printable(name) + ": " + why) }

// entry packs one entry of the directory rel; down says that it is to be read, too.
func (p *packing) entry(ctx context.Context, rel string, info guest.FileInfo) (down bool, err error) {
	name := path.Join(rel, info.Path)
	why := archive.Refused(info.Path)
	switch {
	case why == "" && strings.Contains(info.Path, "/"):
		why = "its name is no name in the directory"
	case why == "":
		if why = archive.Refused(name); why == "" {
			why = archive.Obeyed(name)
		}
	}
	e := archive.Entry{Path: name, Mode: info.Mode.Type() | info.Mode.Perm(), Modified: info.ModTime}
	switch {
	case why != "":
	case info.IsDir():
		if down = strings.Count(name, "/") < archive.MaxDepth-1; !down {
			if err := p.leave(name, "what is in it lies too many directories deep"); err != nil {
				return false, err
			}
		}
		return down, p.out.Add(e, nil)
	case info.Mode.IsRegular():
		return false, p.file(ctx, e)
	case info.Mode.Type() == fs.ModeSymlink:
		e.Target = info.Target
		if why = archive.RefusedLink(name, e.Target); why == "" {
			why = archive.Obeyed(e.Target)
		}
		if why == "" {
			return false, p.out.Add(e, nil)
		}
	default:
		why = "it is a device, pipe or socket"
	}
	return false, p.leave(name, why)
}

func (p *packing) file(ctx context.Context, e archive.Entry) error {
	f, err := p.s.ReadFile(ctx, path.Join(p.dir, e.Path), guest.ReadOptions{User: p.user})
	if passing(err) {
		return p.leave(e.Path, reasonText(err))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	e.Size = f.Info.Size // as it was when it was opened
	return p.out.Add(e, f)
}
