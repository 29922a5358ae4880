package orchestrator

import (
	"cmp"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// journal notes which processes are under way, so that the next process of this
// program follows them on after a crash, and how those in the background ended,
// for whoever asks later. It is a directory with a file for each:
//
//	<sandbox>.<id>          entry, as JSON
//	<sandbox>.<id>.stdin    the standard input that the guest may not have yet, or
//	                        that is open
//	<sandbox>.used          its time: when the sandbox was last used, for the idle timeout
//
// Nothing is flushed: what a crash of the host would lose is of sandboxes that
// are lost with it.
type journal struct{ dir string }

// entry is a process as the journal knows it. No code, arguments or
// environment: they may hold secrets and are not needed again.
type entry struct {
	Sandbox   sandbox.ID       `json:"sandbox"`
	Tenant    sandbox.TenantID `json:"tenant"`
	Principal string           `json:"principal,omitempty"`
	Run       sandbox.RunID    `json:"run,omitempty"`
	ID        uint32           `json:"id"` // the guest protocol's
	PID       int              `json:"pid"`
	User      string           `json:"user,omitempty"`
	Dir       string           `json:"dir,omitempty"` // of its code, to be removed
	Begun     time.Time        `json:"begun"`
	Timeout   time.Duration    `json:"timeout,omitempty"`
	Stood     time.Duration    `json:"stood,omitempty"` // how long its sandbox stood still since: no part of Timeout
	Stdin     stdinKind        `json:"stdin,omitempty"`
	OOM       int              `json:"oom,omitempty"` // the sandbox's OOM kills when it began

	Program    string `json:"program,omitempty"` // what it runs, without arguments
	Tag        string `json:"tag,omitempty"`
	Background bool   `json:"background,omitempty"`
	Closed     bool   `json:"closed,omitempty"` // its open standard input has been closed
	// End is how a process in the background ended, which its sandbox remembers.
	// Whether that is evidence and an event yet is for the next server to look up.
	End *ExecExit `json:"end,omitempty"`

	Forked  bool          `json:"forked,omitempty"`  // its sandbox was made of another, and it has not been told yet
	PTY     *guest.Size   `json:"pty,omitempty"`     // of its terminal; replaced, never changed
	Context *contextEntry `json:"context,omitempty"` // it keeps an interpreter warm
}

// stdinKind is where a process's standard input is.
type stdinKind string

const (
	stdinNone stdinKind = ""
	stdinKept stdinKind = "kept" // in the journal
	stdinLive stdinKind = "live" // with the caller only: lost with this process
	stdinOpen stdinKind = "open" // in the journal, and growing
)

const (
	stdinSuffix = ".stdin"
	usedSuffix  = ".used"
)

func (j journal) path(e *entry) string {
	return filepath.Join(j.dir, string(e.Sandbox)+"."+strconv.FormatUint(uint64(e.ID), 10))
}

// placeFor makes the file of a process that is about to be noted by add, which has to
// write to it only. Nil: add has to make it as well. An empty one is of no process.
func (j journal) placeFor(e *entry) *os.File {
	f, err := os.OpenFile(j.path(e), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil // add meets the same, and says it
	}
	return f
}

// unplace removes what placeFor made, if add has not taken it.
func (j journal) unplace(e *entry, place *os.File) {
	if place != nil && place.Close() == nil {
		_ = os.Remove(place.Name()) // what stays goes with the sandbox
	}
}

// add notes a process, in the file that placeFor made unless that is nil; it is closed.
// stdin, if not nil, is kept with it. On an error nothing of it is left.
func (j journal) add(e *entry, place *os.File, stdin []byte) (err error) {
	path := j.path(e)
	defer func() {
		if err != nil {
			err = errors.Join(sandbox.Wrap("journal", string(e.Sandbox), pathless(err)), pathless(j.remove(e)))
		}
	}()
	if len(stdin) > 0 {
		if err := os.WriteFile(path+stdinSuffix, stdin, 0o600); err != nil {
			return err
		}
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if place == nil {
		return os.WriteFile(path, b, 0o600) // one write: whole, or not there
	}
	_, err = place.Write(b)
	return cmp.Or(err, place.Close())
}

// input makes a standard input that grows, for a process that is about to be
// started. keep gives it to the process.
func (j journal) input(id sandbox.ID) (*input, error) {
	f, err := os.CreateTemp(j.dir, string(id)+".*"+stdinSuffix)
	if err != nil {
		return nil, pathless(err)
	}
	return newInput(f, false)
}

// pathless is err without the host's path: callers are told of it.
func pathless(err error) error {
	var named *fs.PathError
	if errors.As(err, &named) {
		return named.Err
	}
	return err
}

// keep makes in the standard input of e, which is about to be added.
func (j journal) keep(e *entry, in *input) error {
	return os.Rename(in.f.Name(), j.path(e)+stdinSuffix)
}

// drop removes in, which no process has got.
func (j journal) drop(in *input) {
	in.discard()
	_ = os.Remove(in.f.Name()) // what stays goes with the sandbox
}

// reopen opens the standard input that keep gave to e.
func (j journal) reopen(e *entry) (*input, error) {
	f, err := os.OpenFile(j.path(e)+stdinSuffix, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	in, err := newInput(f, e.Closed)
	if err != nil {
		f.Close()
	}
	return in, err
}

// update notes a process that is noted already anew.
func (j journal) update(e *entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	tmp := j.path(e) + ".new"
	if err = os.WriteFile(tmp, b, 0o600); err == nil {
		err = os.Rename(tmp, j.path(e))
	}
	if err != nil {
		_ = os.Remove(tmp) // what stays goes with the sandbox
	}
	return err
}

// remove forgets a process. What is not there is fine.
func (j journal) remove(e *entry) error {
	return errors.Join(absent(os.Remove(j.path(e))), j.unread(e))
}

func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// unread removes the standard input of a process that reads it no more.
func (j journal) unread(e *entry) error { return absent(os.Remove(j.path(e) + stdinSuffix)) }

// stdin opens what add kept. The caller closes it.
func (j journal) stdin(e *entry) (*os.File, error) { return os.Open(j.path(e) + stdinSuffix) }

// touch notes that a sandbox has just been used.
func (j journal) touch(id sandbox.ID) error {
	path := filepath.Join(j.dir, string(id)+usedSuffix)
	now := time.Now()
	err := os.Chtimes(path, now, now)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.WriteFile(path, nil, 0o600); err == nil {
			err = os.Chtimes(path, now, now)
		}
	}
	return err
}

// used is when a sandbox was last used; else, where that is not known. It is
// never in the future, whatever has been done to the clock.
func (j journal) used(id sandbox.ID, otherwise time.Time) time.Time {
	if st, err := os.Stat(filepath.Join(j.dir, string(id)+usedSuffix)); err == nil {
		otherwise = st.ModTime()
	}
	if now := time.Now(); otherwise.After(now) {
		return now
	}
	return otherwise
}

// forget removes what touch made, and what add made of procs.
func (j journal) forget(id sandbox.ID, procs []*entry) error {
	errs := []error{absent(os.Remove(filepath.Join(j.dir, string(id)+usedSuffix)))}
	for _, e := range procs {
		errs = append(errs, j.remove(e))
	}
	return errors.Join(errs...)
}

// read returns the processes of all sandboxes. What a crash left half written
// is of no process anybody was told about, and goes.
func (j journal) read() (map[sandbox.ID][]*entry, error) {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	all := map[sandbox.ID][]*entry{}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), usedSuffix) || strings.HasSuffix(f.Name(), stdinSuffix) {
			continue
		}
		path := filepath.Join(j.dir, f.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		e := &entry{}
		if json.Unmarshal(b, e) != nil || j.path(e) != path || !e.Sandbox.Valid() {
			if err := errors.Join(absent(os.Remove(path)), absent(os.Remove(path+stdinSuffix))); err != nil {
				return nil, err
			}
			continue
		}
		all[e.Sandbox] = append(all[e.Sandbox], e)
	}
	return all, nil
}

// sweep removes what belongs to none of the living: a crash can leave it.
func (j journal) sweep(lives func(sandbox.ID) bool) error {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		id, _, _ := strings.Cut(f.Name(), ".")
		if !lives(sandbox.ID(id)) {
			errs = append(errs, absent(os.Remove(filepath.Join(j.dir, f.Name()))))
		}
	}
	return errors.Join(errs...)
}
