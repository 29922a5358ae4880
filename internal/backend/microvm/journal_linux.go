package microvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Names inside an instance's directory.
const (
	fileIntent    = "instance.json"
	fileProcesses = "processes"
	fileReady     = "ready"
	fileDisk      = "disk"
)

// intent is what the creator of an instance was about to make. It is written
// before the first host object besides the directory it lies in. It is not
// synced: a crash of the host that loses it ends all it speaks of, except the
// directory, which names the instance by itself.
type intent struct {
	Instance sandbox.InstanceID `json:"instance"`
	Sandbox  sandbox.ID         `json:"sandbox,omitempty"`
	Tenant   sandbox.TenantID   `json:"tenant,omitempty"`
	Created  time.Time          `json:"created"`
	Boot     string             `json:"boot"` // the host's boot id: pids of another boot mean nothing
	Cgroups  []string           `json:"cgroups"`
	Limits   sandbox.Limits     `json:"limits"`
	Enforced sandbox.LimitSet   `json:"enforced"`
	Overhead int64              `json:"overhead"`
	VMM      string             `json:"vmm"`
	Accel    string             `json:"accel"`
	NetNS    string             `json:"netns,omitempty"` // of its wire, which is not its own
}

// newPrefix marks a directory that has no name yet. What follows is the id, the
// pid and start of its maker, and a random number.
const newPrefix = ".new-"

// writeIntent makes the instance's directory with the intent in it. The returned
// file holds an exclusive lock for as long as the instance is being made; the
// directory gets its name with the lock held, so nobody ever takes a creation in
// progress for one that crashed. Errors: fs.ErrExist.
func writeIntent(dir string, in intent) (lock *os.File, err error) {
	self, _ := identify(os.Getpid()) // always there
	tmp, err := os.MkdirTemp(filepath.Dir(dir), fmt.Sprintf("%s%s-%d-%d-", newPrefix, filepath.Base(dir), self.PID, self.Start))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	failpoint.Hit("microvm.create/after-mkdir")
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
// the intent was complete yields what its name tells and no error.
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

// writeProcesses records the monitor, whole or not at all.
func writeProcesses(dir string, procs []process) error {
	b, err := json.Marshal(procs)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, fileProcesses+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, fileProcesses))
}

// readProcesses is the inverse; none when there is no record.
func readProcesses(dir string) (procs []process, err error) {
	b, err := os.ReadFile(filepath.Join(dir, fileProcesses))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return procs, json.Unmarshal(b, &procs)
}
