package first

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
)

func TestAsked(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{
		{append([]string{"/proc/self/exe"}, arguments...), true},
		{[]string{"runsc", "umount", "--sync-fd=4", "/proc"}, false}, // left to gVisor
		{[]string{"runsc", "umount", "--sync-fd=3"}, false},
		{[]string{"runsc", "--root=x", "umount", "--sync-fd=3", "/proc"}, false},
		{[]string{"runsc"}, false},
		{nil, false},
	} {
		if got := asked(c.args); got != c.want {
			t.Errorf("asked(%q) = %v", c.args, got)
		}
	}
}

// TestWait: nothing is unmounted before the byte, and without one nothing ever is.
func TestWait(t *testing.T) {
	failing := errors.New("no")
	for _, c := range []struct {
		name   string
		write  string
		err    error
		status int
		calls  []string
	}{
		{"a byte", "x", nil, 0, []string{"/proc"}},
		{"the end", "", nil, 128, nil},
		{"a failure", "x", failing, 128, []string{"/proc"}},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var calls []string
		done := make(chan int, 1)
		go func() {
			done <- wait(int(r.Fd()), "/proc", func(dir string, flags int) error {
				if flags != syscall.MNT_DETACH {
					t.Errorf("%s: flags %#x", c.name, flags)
				}
				calls = append(calls, dir)
				return c.err
			})
		}()
		if c.write != "" {
			if _, err := w.WriteString(c.write); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		if got := <-done; got != c.status || !slices.Equal(calls, c.calls) {
			t.Errorf("%s: status %d after %q, want %d after %q", c.name, got, calls, c.status, c.calls)
		}
		r.Close()
	}
}
