package template

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// upload is an archive waiting to be built from. It lies in a temporary, so
// that it goes with this process.
type upload struct {
	owner string
	t     *temporary
	size  int64
	since time.Time
}

// How many uploads may wait at once, and for how long.
const (
	maxUploads  = 8
	uploadLives = time.Hour
)

func (u *upload) path() string { return filepath.Join(u.t.dir, "upload") }

// Receive stores r for a Build by the same owner, which it stays hidden from
// others with, and returns an id to name it by. What no build uses goes after
// an hour, and with this process.
//
// Errors: KindTooLarge over Limits.Download, KindCapacity with RetryAfter when
// too many wait, KindNoSpace, those of r. After any nothing is left.
func (s *Store) Receive(ctx context.Context, owner string, r io.Reader) (id string, size int64, err error) {
	const op = "template upload"
	if err := s.dropUploads(time.Now().Add(-uploadLives)); err != nil {
		return "", 0, sandbox.Wrap(op, "", err)
	}
	id = strings.ToLower(rand.Text())
	u := &upload{owner: owner, since: time.Now()}
	s.mu.Lock()
	full := len(s.uploads) >= maxUploads
	if !full {
		s.uploads[id] = u // a place, until it is complete
	}
	s.mu.Unlock()
	if full {
		e := sandbox.Errorf(op, sandbox.KindCapacity, "%d uploads wait to be built from", maxUploads).WithHint("try again in a minute")
		e.RetryAfter = time.Minute
		return "", 0, e
	}
	t, err := s.newTemporary()
	if err == nil {
		if size, err = s.spool(ctx, filepath.Join(t.dir, "upload"), r); err != nil {
			err = errors.Join(err, t.discard())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.uploads, id)
		return "", 0, sandbox.Wrap(op, "", noSpace(err))
	}
	u.t, u.size, u.since = t, size, time.Now()
	return id, size, nil
}

func (s *Store) spool(ctx context.Context, path string, r io.Reader) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	failpoint.Hit("template.upload/before-write")
	limit := s.opts.Limits.Download
	size, err = io.Copy(f, io.LimitReader(ending{ctx, r}, limit+1))
	if err == nil && size > limit {
		err = refuse(sandbox.KindTooLarge, "the archive is larger than %s", sandbox.FormatSize(limit))
	}
	failpoint.Hit("template.upload/after-write")
	return size, err
}

// take removes an upload from the waiting ones, for a build to discard.
func (s *Store) take(owner, id string) (*upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uploads[id]
	if u == nil || u.owner != owner || u.t == nil {
		return nil, sandbox.Errorf(opBuild, sandbox.KindNotFound, "no upload %q waits", clip(id)).WithHint("upload the archive again; it waits for an hour")
	}
	delete(s.uploads, id)
	return u, nil
}

// dropUploads removes those that have waited since before then.
func (s *Store) dropUploads(then time.Time) error {
	s.mu.Lock()
	var old []*upload
	for id, u := range s.uploads {
		if u.t != nil && u.since.Before(then) {
			old = append(old, u)
			delete(s.uploads, id)
		}
	}
	s.mu.Unlock()
	var err error
	for _, u := range old {
		err = errors.Join(err, u.t.discard())
	}
	return err
}
