package orchestrator

import (
	"context"
	"io"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"sync"

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

// access prepares a file operation: the sandbox is held, the act recorded, the
// session open.
func (o *Orchestrator) access(ctx context.Context, who Caller, ref, user string, r sandbox.Record) (*live, *guest.Session, func(), error) {
	if err := o.checkUser(user); err != nil {
		return nil, nil, nil, err
	}
	l, done, err := o.use(ctx, who.Tenant, ref)
	if err != nil {
		return nil, nil, nil, err
	}
	r.Outcome, r.Object = sandbox.OutcomeAllowed, clip(r.Object)
	if r.Action != "" {
		err = l.record(ctx, who, r)
	}
	var s *guest.Session
	if err == nil {
		s, err = l.session(ctx)
	}
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return l, s, done, nil
}

// OpenFile opens a regular file from offset, for length bytes or, if that is
// 0, to its end. The end of ctx closes it.
func (o *Orchestrator) OpenFile(ctx context.Context, who Caller, ref, path string, opt guest.ReadOptions) (*File, error) {
	l, s, done, err := o.access(ctx, who, ref, opt.User, sandbox.Record{Class: sandbox.Flow, Action: "file.read", Object: path})
	if err != nil {
		return nil, err
	}
	r, err := s.ReadFile(ctx, path, opt)
	if err != nil {
		done()
		return nil, l.fileError(s, path, err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	return &File{Info: r.Info, r: r, l: l, s: s, done: sync.OnceFunc(func() { stop(); r.Close(); done() })}, nil
}

// WriteFile stores r as a file, whole or not at all, and makes missing parents.
func (o *Orchestrator) WriteFile(ctx context.Context, who Caller, ref, path, user string, mode fs.FileMode, r io.Reader) (guest.FileInfo, error) {
	l, s, done, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.write", Object: path})
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer done()
	info, err := s.WriteFile(ctx, path, r, guest.WriteOptions{User: user, Mode: mode, Parents: true})
	return info, l.fileError(s, path, err)
}

// StatFile describes a file; a final symbolic link is not followed.
func (o *Orchestrator) StatFile(ctx context.Context, who Caller, ref, path, user string) (guest.FileInfo, error) {
	l, s, done, err := o.access(ctx, who, ref, user, sandbox.Record{})
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer done()
	info, err := s.Stat(ctx, path, user)
	return info, l.fileError(s, path, err)
}

// ListFiles lists a directory, the user's home if path is empty. more says that
// entries were left out.
func (o *Orchestrator) ListFiles(ctx context.Context, who Caller, ref, path string, opt guest.ListOptions) (list []guest.FileInfo, more bool, err error) {
	l, s, done, err := o.access(ctx, who, ref, opt.User, sandbox.Record{})
	if err != nil {
		return nil, false, err
	}
	defer done()
	list, more, err = s.List(ctx, pick(path, "."), opt)
	return list, more, l.fileError(s, path, err)
}

// MakeDirectory makes a directory and what is missing above it; one that exists
// is fine.
func (o *Orchestrator) MakeDirectory(ctx context.Context, who Caller, ref, path, user string) (guest.FileInfo, error) {
	l, s, done, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.mkdir", Object: path})
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer done()
	var info guest.FileInfo
	if err = s.Mkdir(ctx, path, user, 0o755, true); err == nil {
		info, err = s.Stat(ctx, path, user)
	}
	return info, l.fileError(s, path, err)
}

// MoveFile renames a file or directory, replacing a file at to.
func (o *Orchestrator) MoveFile(ctx context.Context, who Caller, ref, from, to, user string) (guest.FileInfo, error) {
	l, s, done, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.move", Object: from, Detail: map[string]string{"to": clip(to)}})
	if err != nil {
		return guest.FileInfo{}, err
	}
	defer done()
	var info guest.FileInfo
	if err = s.Move(ctx, from, to, user); err == nil {
		info, err = s.Stat(ctx, to, user)
	}
	return info, l.fileError(s, from, err)
}

// RemoveFile removes a file or an empty directory, or with recursive a tree.
func (o *Orchestrator) RemoveFile(ctx context.Context, who Caller, ref, path, user string, recursive bool) error {
	l, s, done, err := o.access(ctx, who, ref, user, sandbox.Record{Action: "file.remove", Object: path})
	if err != nil {
		return err
	}
	defer done()
	return l.fileError(s, path, s.Remove(ctx, path, guest.RemoveOptions{User: user, Recursive: recursive}))
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
		if !strings.HasPrefix(path, "/") {
			e.Hint = "relative paths start at the user's home, " + guest.DefaultHome
		}
	case sandbox.KindNoSpace:
		e.Hint = "the sandbox's disk is full: limits.disk_bytes makes it larger"
	case sandbox.KindIsDirectory:
		e.Hint = "list it, or name a file in it"
	}
	return e
}
