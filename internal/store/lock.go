package store

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Owner is exclusive ownership of a data directory, until Close or the death
// of the process.
type Owner struct {
	f    *os.File
	once sync.Once
	err  error
}

// LockedError says who owns a data directory.
type LockedError struct {
	Dir string
	PID int // 0 when unknown
}

// Error implements error.
func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is in use by another process", e.Dir)
	}
	return fmt.Sprintf("%s is in use by process %d", e.Dir, e.PID)
}

// How long a dead owner's lock may be held by what it was just starting, and how often
// that is looked at.
const (
	inherited = 10 * time.Second
	lockPoll  = 20 * time.Millisecond
)

// Lock takes ownership of dir, which it creates with mode 0700 if need be. It
// does not wait for a living owner. The kernel drops the lock when the process ends, however it
// ends; the file "lock" stays and names the last owner.
//
// Errors: KindUnavailable wrapping *LockedError when somebody owns it, this
// process included.
func Lock(dir string) (*Owner, error) {
	const op = "lock data directory"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, sandbox.Wrap(op, dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, sandbox.Wrap(op, dir, err)
	}
	taken, err := flock(f)
	// The lock of a process that was killed while it started another one is
	// held until that other one has come to its exec.
	for waited := time.Duration(0); taken && waited < inherited && died(ownerPID(f)); waited += lockPoll {
		time.Sleep(lockPoll)
		taken, err = flock(f)
	}
	switch {
	case taken:
		pid := ownerPID(f)
		f.Close()
		return nil, sandbox.Errorf(op, sandbox.KindUnavailable, "%w", &LockedError{dir, pid}).
			WithHint("stop that process, talk to it instead, or choose another directory with FIREBREAK_DATA")
	case err == nil:
		err = writePID(f)
	}
	if err != nil {
		f.Close()
		return nil, sandbox.Wrap(op, dir, err)
	}
	return &Owner{f: f}, nil
}

// Close gives the directory up. It is idempotent.
func (o *Owner) Close() error {
	o.once.Do(func() { o.err = sandbox.Wrap("unlock data directory", "", o.f.Close()) })
	return o.err
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// ownerPID reads what the owner wrote; 0 when it had no time to.
func ownerPID(f *os.File) int {
	var b [20]byte
	n, _ := f.ReadAt(b[:], 0) // a short read is the normal case
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}
