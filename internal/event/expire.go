package event

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Known tells which of up to 500 sandboxes there still is a record of.
type Known func(ctx context.Context, ids []sandbox.ID) (map[sandbox.ID]bool, error)

// Bounds of one Expire.
const (
	expireBatch = 500
	expirePass  = 2_000
)

// Expire removes the files of sandboxes that known does not know and that did
// not change since before: of those whose record was purged, and of those that
// lost theirs some other way and whose sequence therefore never ended. It
// removes those of 2000 sandboxes at most; more tells that there are others.
//
// Cost: looking at every file. It is safe at any time, and repeatable.
func (h *Hub) Expire(ctx context.Context, before time.Time, known Known) (more bool, err error) {
	const op = "expire events"
	d, err := os.Open(h.dir)
	if err != nil {
		return false, sandbox.Wrap(op, h.dir, err)
	}
	defer d.Close()
	removed := 0
	for {
		entries, err := d.ReadDir(expireBatch)
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return true, sandbox.Wrap(op, h.dir, err)
		}
		old := aged(entries, before)
		have, err := known(ctx, old)
		if err != nil {
			return true, err
		}
		for _, id := range old {
			if have[id] {
				continue
			}
			if removed++; removed > expirePass {
				return true, nil
			}
			if err := h.drop(id, before); err != nil {
				return true, sandbox.Wrap(op, string(id), err)
			}
		}
	}
}

// aged returns the sandboxes that have a file among entries which is old.
func aged(entries []os.DirEntry, before time.Time) (ids []sandbox.ID) {
	seen := map[sandbox.ID]bool{}
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), ".")
		id := sandbox.ID(name)
		if !id.Valid() || seen[id] {
			continue
		}
		if fi, err := e.Info(); err == nil && fi.ModTime().Before(before) {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

// drop removes the files of id, unless one of them is young.
func (h *Hub) drop(id sandbox.ID, before time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.streams[id]
	if s == nil {
		s = newStream(h.dir, id, &h.o)
	}
	for _, path := range []string{s.state.path, s.out.path, s.out.path + ".old"} {
		if fi, err := os.Stat(path); err == nil && !fi.ModTime().Before(before) {
			return nil
		}
	}
	delete(h.streams, id)
	return s.remove()
}
