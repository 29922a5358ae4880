//go:build unix

package store

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestLockOfTheDead: what a killed owner was just starting holds its lock for
// a moment. That is waited for; a living owner is not.
func TestLockOfTheDead(t *testing.T) {
	dir := t.TempDir()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	held, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "lock"), []byte(strconv.Itoa(gone.Process.Pid)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { held.Close() })
	next, err := Lock(dir)
	if err != nil {
		t.Fatalf("the lock of a dead process: %v", err)
	}
	defer next.Close()
	begun := time.Now()
	_, err = Lock(dir)
	if locked := (*LockedError)(nil); !errors.As(err, &locked) || locked.PID != os.Getpid() || time.Since(begun) > 5*time.Second {
		t.Errorf("the lock of a living process: %v, after %s", err, time.Since(begun))
	}
}
