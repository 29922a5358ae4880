package orchestrator

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// images is the directory of what sandboxes are restored from: one for each paused
// sandbox, named by the instance that was saved, and one for each snapshot, by its
// id. In it:
//
//	image/       the backend's
//	processes/   the standard input of processes, as in the journal
//
// What no record names is nobody's: a record is written when its files are
// complete, and forgotten before they are removed.
type images struct{ dir string }

// Names within one.
const (
	imageDir     = "image"
	processesDir = "processes"
)

// path is where the image called name is.
func (i images) path(name string) string { return filepath.Join(i.dir, name) }

// make begins one. On an error nothing of it is left.
func (i images) make(name string) error {
	err := os.MkdirAll(i.dir, 0o700)
	if err == nil {
		err = os.Mkdir(i.path(name), 0o700)
	}
	if err == nil {
		if err = os.Mkdir(filepath.Join(i.path(name), processesDir), 0o700); err != nil {
			err = errors.Join(err, i.remove(name))
		}
	}
	return pathless(err)
}

// there reports whether one is.
func (i images) there(name string) bool {
	fi, err := os.Lstat(i.path(name))
	return err == nil && fi.IsDir()
}

// remove removes one. What is not there is fine.
func (i images) remove(name string) error { return pathless(os.RemoveAll(i.path(name))) }

// gone is remove, and the object for a receipt.
func (i images) gone(name string) sandbox.Object {
	err := i.remove(name)
	o := sandbox.Object{Kind: "directory", Name: i.path(name), Check: "lstat finds nothing"}
	_, e := os.Lstat(o.Name)
	if o.Gone, o.Checked = errors.Is(e, fs.ErrNotExist), time.Now().UTC(); !o.Gone && err != nil {
		o.Detail = err.Error()
	}
	return o
}

// sweep removes what needed does not name.
func (i images) sweep(needed map[string]bool) error {
	entries, err := os.ReadDir(i.dir)
	if err != nil {
		return absent(err)
	}
	var errs []error
	for _, e := range entries {
		ours := sandbox.InstanceID(e.Name()).Valid() || sandbox.SnapshotID(e.Name()).Valid()
		if ours && !needed[e.Name()] {
			errs = append(errs, i.remove(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// ImageState is what is kept of an image beside its files.
type ImageState struct {
	Name    string    `json:"name"` // of its directory
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	// Held says that the backend has the image itself, for a moment: only what is kept
	// beside it is in its directory.
	Held bool `json:"held,omitempty"`
}

// PauseState is a sandbox's while it is paused.
type PauseState struct {
	Image ImageState `json:"image"`
	Since time.Time  `json:"since"`
	// Life is what it has to live once it goes on; nil: its life goes on meanwhile.
	Life *time.Duration `json:"life,omitempty"`
}

// snapshot is the image as the backend wants it.
func (i images) snapshot(s ImageState, sb Sandbox) sandbox.Snapshot {
	out := sandbox.Snapshot{Dir: filepath.Join(i.path(s.Name), imageDir), Digest: s.Digest, Size: s.Size, Created: s.Created,
		Limits: sb.Limits, ReadonlyRoot: sb.ReadonlyRoot}
	if s.Held {
		out.Dir = ""
	}
	return out
}
