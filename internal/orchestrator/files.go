package orchestrator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// File operations act as a user of the guest, with that user's permissions;
// relative paths start at the user's home. Whatever comes back is the guest's
// claim. Writes are recorded before they are done, reads as flow.

// reUser is a guest account: a name, or a number.
var reUser = regexp.MustCompile(`^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})$`)

// checkUser decides whether user may be acted as.
func (o *Orchestrator) checkUser(user string) error {
	if user == "" {
		return nil
	}
	if !reUser.MatchString(user) {
		return sandbox.Errorf("user", sandbox.KindInvalid, "malformed user %.40q", user).WithHint("a name like \"user\", or a number")
	}
	uid, err := strconv.Atoi(user)
	if (user == "root" || err == nil && uid == 0) && !o.AllowRoot {
		return sandbox.Errorf("user", sandbox.KindDenied, "the guest's root may not be used here").
			WithHint("leave user out, or allow it in the server's configuration (allow_root)")
	}
	return nil
}

// File is an open file of a sandbox, which counts as used until Close.
type File struct {
	Info guest.FileInfo
	r    *guest.FileReader
	l    *live
	s    *guest.Session
	done func()
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		err = f.l.settle(f.s, err)
	}
	return n, err
}

// Close implements io.Closer. It is idempotent.
func (f *File) Close() error {
	f.done()
	return nil
}

// access is a file operation under way: the sandbox is held, the act recorded,
// the session open.
type access struct {
	l    *live
	s    *guest.Session
	who  Caller
	r    sandbox.Record
	done func()
}

// access begins a file operation, which ends with its done. first, if not nil,
// completes the record once the sandbox is known to be there.
func (o *Orchestrator) access(ctx context.Context, who Caller, ref, user string, r sandbox.Record, first func(*sandbox.Record) error) (*access, error) {
	if err := o.checkUser(user); err != nil {
		return nil, err
	}
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return nil, err
	}
	r.Outcome, r.Object = sandbox.OutcomeAllowed, clip(r.Object)
	if first != nil {
		err = first(&r)
	}
	if err == nil {
		err = l.record(ctx, who, r)
	}
	failpoint.Hit("file/after-evidence")
	var s *guest.Session
	if err == nil {
		s, err = l.session(ctx)
	}
	if err != nil {
		done()
		return nil, err
	}
	return &access{l: l, s: s, who: who, r: r, done: done}, nil
}

// settled explains err, about path. A change that failed is recorded: it was
// about to be done.
func (a *access) settled(ctx context.Context, path string, err error) error {
	err = a.l.fileError(a.s, path, err)
	if err == nil || a.r.Class == sandbox.Flow {
		return err
	}
	r := a.r
	r.Class, r.Outcome, r.Detail = sandbox.Flow, sandbox.OutcomeFailed, map[string]string{"kind": string(sandbox.KindOf(err))}
	if e := a.l.record(context.WithoutCancel(ctx), a.who, r); e != nil {
		return errors.Join(err, e)
	}
	return err
}

// OpenFile opens a regular file from offset, for length bytes or, if that is
// 0, to its end. The end of ctx closes it.
func (o *Orchestrator) OpenFile(ctx context.Context, who Caller, ref, path string, opt guest.ReadOptions) (*File, error) {
	r := sandbox.Record{Class: sandbox.Flow, Action: "file.read", Object: path}
	if opt.Offset != 0 || opt.Length != 0 {
		r.Detail = map[string]string{"offset": strconv.FormatInt(opt.Offset, 10), "length": strconv.FormatInt(opt.Length, 10)}
	}
	a, err := o.access(ctx, who, ref, opt.User, r, nil)
	if err != nil {
		return nil, err
	}
	f, err := a.s.ReadFile(ctx, path, opt)
	if err != nil {
		a.done()
		return nil, a.settled(ctx, path, err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	return &File{Info: f.Info, r: f, l: a.l, s: a.s, done: sync.OnceFunc(func() { stop(); f.Close(); a.done() })}, nil
}

// digestBefore is up to how many bytes of a file are read before its write is
// recorded, so that one record tells what was written.
const digestBefore = 64 << 10

// WriteFile stores r as a file, whole or not at all, and makes missing parents.
// The record before the write has the content's digest if that is small; of a
// larger one a second record does, which is durable before the answer.
func (o *Orchestrator) WriteFile(ctx context.Context, who Caller, ref, path string, opt guest.WriteOptions, r io.Reader) (guest.FileInfo, error) {
	var head bytes.Buffer
	whole := false
	a, err := o.access(ctx, who, ref, opt.User, sandbox.Record{Action: "file.write", Object: path}, func(rec *sandbox.Record) error {
		n, err := io.CopyN(&head, r, digestBefore)
		if err != nil && err != io.EOF {
			return err
		}
		if whole = n < digestBefore; whole {
			sum := sha256.Sum256(head.Bytes())
			rec.Digest, rec.Detail = hex.EncodeToString(sum[:]), map[string]string{"bytes": strconv.FormatInt(n, 10)}
		}
		return nil
	})
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer a.done()
	content := io.MultiReader(&head, r)
	var d *digester
	if !whole {
		d = newDigester(content)
		defer d.Close()
		content = d
	}
	opt.Parents = true
	info, err := a.s.WriteFile(ctx, path, content, opt)
	if err = a.settled(ctx, path, err); err == nil && !whole {
		rec := a.r
		rec.Outcome, rec.Digest, rec.Detail = sandbox.OutcomeDone, d.Close(), map[string]string{"bytes": strconv.FormatInt(d.n, 10)}
		err = a.l.record(context.WithoutCancel(ctx), who, rec)
	}
	failpoint.Hit("file/before-answer")
	return info, err
}

// StatFile describes a file; a final symbolic link is not followed.
func (o *Orchestrator) StatFile(ctx context.Context, who Caller, ref, path, user string) (guest.FileInfo, error) {
	a, err := o.access(ctx, who, ref, user, sandbox.Record{Class: sandbox.Flow, Action: "file.stat", Object: path}, nil)
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer a.done()
	info, err := a.s.Stat(ctx, path, user)
	return info, a.settled(ctx, path, err)
}

// ListFiles lists a directory, the user's home if path is empty. more says that
// entries were left out.
func (o *Orchestrator) ListFiles(ctx context.Context, who Caller, ref, path string, opt guest.ListOptions) (list []guest.FileInfo, more bool, err error) {
	a, err := o.access(ctx, who, ref, opt.User, sandbox.Record{Class: sandbox.Flow, Action: "file.list", Object: pick(path, ".")}, nil)
	if err != nil {
		return nil, false, err
	}
	defer a.done()
	list, more, err = a.s.List(ctx, pick(path, "."), opt)
	return list, more, a.settled(ctx, path, err)
}

// MakeDirectory makes a directory and what is missing above it; one that exists
// is fine.
func (o *Orchestrator) MakeDirectory(ctx context.Context, who Caller, ref, path, user string) (guest.FileInfo, error) {
	a, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.mkdir", Object: path}, nil)
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer a.done()
	var info guest.FileInfo
	if err = a.s.Mkdir(ctx, path, user, 0o755, true); err == nil {
		info, err = a.s.Stat(ctx, path, user)
	}
	return info, a.settled(ctx, path, err)
}

// MoveFile renames a file or directory, replacing a file at to.
func (o *Orchestrator) MoveFile(ctx context.Context, who Caller, ref, from, to, user string) (guest.FileInfo, error) {
	a, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.move", Object: from, Detail: map[string]string{"to": clip(to)}}, nil)
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer a.done()
	var info guest.FileInfo
	if err = a.s.Move(ctx, from, to, user); err == nil {
		info, err = a.s.Stat(ctx, to, user)
	}
	return info, a.settled(ctx, from, err)
}

// RemoveFile removes a file or an empty directory, or with recursive a tree.
func (o *Orchestrator) RemoveFile(ctx context.Context, who Caller, ref, path, user string, recursive bool) error {
	a, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.remove", Object: path}, nil)
	if err != nil {
		return err
	}
	defer a.done()
	return a.settled(ctx, path, a.s.Remove(ctx, path, guest.RemoveOptions{User: user, Recursive: recursive}))
}

// fileError names the path and adds what a person may not know.
func (l *live) fileError(s *guest.Session, path string, err error) error {
	err = l.settle(s, err)
	e, ok := err.(*sandbox.Error)
	if !ok {
		return err
	}
	if e.ID == "" {
		e.ID = string(l.id)
	}
	if e.Hint != "" {
		return e
	}
	switch e.Kind {
	case sandbox.KindNotFound:
		e.Hint = "list the directory above it to see what there is"
		if !strings.HasPrefix(path, "/") {
			e.Hint = "relative paths start at the user's home, " + guest.DefaultHome
		}
	case sandbox.KindExists:
		e.Hint = "choose another name, or remove what is there first"
	case sandbox.KindDenied:
		e.Hint = "the sandbox's user may not do this: use a path that belongs to it, as its home does, or name the user who may"
	case sandbox.KindNotDirectory:
		e.Hint = "a file is in the way: leave away what follows its name, or choose another path"
	case sandbox.KindNoSpace:
		e.Hint = "the sandbox's disk is full: limits.disk_bytes makes it larger"
	case sandbox.KindIsDirectory:
		e.Hint = "list it, or name a file in it"
	}
	return e
}

// SignFile records that somebody may use a file of a live sandbox as user, for
// operation and until a time, without being asked again who they are.
func (o *Orchestrator) SignFile(ctx context.Context, who Caller, ref, path, user, operation string, until time.Time) (Holding, error) {
	a, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.sign", Object: path, Detail: map[string]string{
		"operation": operation, "expires": until.UTC().Format(time.RFC3339), "user": pick(user, guest.DefaultUser)}}, nil)
	if err != nil {
		return Holding{}, err
	}
	a.done()
	return Holding{a.l.id, a.l.tenant}, nil
}
