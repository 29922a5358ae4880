package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Names inside an instance's directory.
const (
	fileIntent    = "instance.json"
	fileBundle    = "config.json"
	fileIn        = "in"
	fileOut       = "out"
	fileProcesses = "processes"
	fileRunscLog  = "runsc.log"
	filePanicLog  = "panic.log"
	dirState      = "runsc"
)

// intent is what the creator of an instance was about to make. It is written
// before the first host object besides the directory it lies in, so whoever
// finds the directory knows every name to look for.
//
// It is not synced to disk: it has to outlive its writer, which the page cache
// does. A crash of the host that loses it ends all it speaks of, except the
// directory, which names the instance by itself.
type intent struct {
	Instance sandbox.InstanceID `json:"instance"`
	Sandbox  sandbox.ID         `json:"sandbox,omitempty"`
	Tenant   sandbox.TenantID   `json:"tenant,omitempty"`
	Created  time.Time          `json:"created"`
	Boot     string             `json:"boot"`    // the host's boot id: pids of another boot mean nothing
	Cgroups  []string           `json:"cgroups"` // directories, to be made
	Limits   sandbox.Limits     `json:"limits"`
	Enforced sandbox.LimitSet   `json:"enforced"`
	Overhead int64              `json:"overhead"`
	// What a snapshot has to know of it. Earlier versions did not note it.
	Runsc        string `json:"runsc,omitempty"`   // the programs it is made of
	Runtime      string `json:"runtime,omitempty"` // ditto
	Template     string `json:"template,omitempty"`
	ReadonlyRoot bool   `json:"readonly_root,omitempty"`
	Wired        bool   `json:"wired,omitempty"`
	// Ahead says that it was made before anybody wanted it: until something goes on in it
	// nothing runs there, and no evidence is about it.
	Ahead bool `json:"ahead,omitempty"`
}

// process identifies a process beyond the reuse of its pid.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
	Role  string `json:"role,omitempty"`
}

// running is what was alive when the agent first answered. An instance without
// it was never handed to anyone.
type running struct {
	Sentry    process   `json:"sentry"`
	Processes []process `json:"processes"`
	// Namespaces are those made for sentry and gofer, as /proc names them. Earlier
	// versions did not note them.
	Namespaces []string `json:"namespaces,omitempty"`
	// Blank says that there is no guest yet.
	Blank bool `json:"blank,omitempty"`
}

// newPrefix marks a directory that has no name yet. What follows is the id, the
// pid and start of its maker, and a random number.
const newPrefix = ".new-"

// self is this process.
var self = sync.OnceValue(func() process {
	p, _ := identify(os.Getpid()) // always there
	return p
})

// writeIntent makes the instance's directory with the intent in it. The
// returned file holds an exclusive lock for as long as the instance is being
// made; the directory gets its name with the lock held, so nobody ever takes a
// creation in progress for one that crashed. Errors: fs.ErrExist.
func writeIntent(dir string, in intent) (lock *os.File, err error) {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), fmt.Sprintf("%s%s-%d-%d-", newPrefix, filepath.Base(dir), self().PID, self().Start))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	failpoint.Hit("gvisor.create/after-mkdir")
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(tmp, fileIntent), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock intent: %w", err)
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return nil, err
	}
	failpoint.Hit("gvisor.create/before-name")
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) { // a file system without the flag
		err = unix.Rename(tmp, dir) // does not replace a directory with something in it
	}
	if errors.Is(err, unix.ENOTEMPTY) {
		err = unix.EEXIST
	}
	if err != nil {
		return nil, &os.LinkError{Op: "rename", Old: tmp, New: dir, Err: err}
	}
	return f, nil
}

// sweep removes directories whose makers died before they named them.
func sweep(dir string) {
	stale, _ := filepath.Glob(filepath.Join(dir, newPrefix+"*"))
	for _, d := range stale {
		var maker process
		f := strings.Split(strings.TrimPrefix(filepath.Base(d), newPrefix), "-")
		if len(f) > 2 {
			maker.PID, _ = strconv.Atoi(f[1]) // 0, which is nobody, if it is no number
			maker.Start, _ = strconv.ParseUint(f[2], 10, 64)
		}
		if maker.gone() {
			os.RemoveAll(d)
		}
	}
}

// readIntent reads an instance's intent. A directory whose creator died before
// the intent was complete yields what its name tells and no error: nothing but
// the directory was made for it.
func readIntent(dir string) (intent, error) {
	in := intent{Instance: sandbox.InstanceID(filepath.Base(dir))}
	b, err := os.ReadFile(filepath.Join(dir, fileIntent))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(dir); err != nil {
			return in, err
		}
		return in, nil
	case err != nil:
		return in, err
	}
	var read intent
	if json.Unmarshal(b, &read) != nil || read.Instance != in.Instance {
		return in, nil
	}
	return read, nil
}

// beingMade reports whether somebody holds the lock of writeIntent. An error
// means that it cannot be told.
func beingMade(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, fileIntent))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// writeRunning records the processes, whole or not at all.
func writeRunning(dir string, r running) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, fileProcesses+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	failpoint.Hit("gvisor.create/before-running")
	return os.Rename(tmp, filepath.Join(dir, fileProcesses))
}

// readRunning is the inverse of writeRunning; fs.ErrNotExist when there is none.
func readRunning(dir string) (r running, err error) {
	b, err := os.ReadFile(filepath.Join(dir, fileProcesses))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}
