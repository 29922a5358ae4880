package sim

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func TestFSErrors(t *testing.T) {
	f := newFS(1 << 20)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(f.WriteFile(userCred, "/tmp/f", []byte("x"), 0o600))
	do(f.Mkdir(userCred, "/tmp/d", 0o700))
	do(f.Symlink(userCred, "../../../etc/passwd", "/tmp/up"))
	do(f.Symlink(userCred, "loop", "/tmp/loop"))
	if _, err := f.ReadFile(userCred, "/tmp/up"); err != nil {
		t.Errorf("a link above the root must end at the root: %v", err)
	}
	other := cred{1001, 1001}
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"loop", second(f.ReadFile(userCred, "/tmp/loop")), syscall.ELOOP},
		{"another's file", second(f.ReadFile(other, "/tmp/f")), syscall.EACCES},
		{"another's directory", second(f.List(other, "/tmp/d")), syscall.EACCES},
		{"remove another's from a sticky directory", f.Remove(other, "/tmp/f", false), syscall.EPERM},
		{"rename another's", f.Rename(other, "/tmp/f", "/tmp/g"), syscall.EPERM},
		{"root's file", f.WriteFile(userCred, "/etc/passwd", nil, 0), syscall.EACCES},
		{"through a file", second(f.Stat(userCred, "/tmp/f/x", true)), syscall.ENOTDIR},
		{"into itself", f.Rename(userCred, "/tmp/d", "/tmp/d/e"), syscall.EINVAL},
		{"the root", f.Remove(rootCred, "/", true), syscall.EINVAL},
		{"chmod another's", f.Chmod(other, "/tmp/f", 0o777), syscall.EPERM},
		{"too big", f.WriteFile(userCred, "/tmp/big", make([]byte, 2<<20), 0o600), syscall.ENOSPC},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestFSAccounting: whatever is done, what is charged is what is there, and
// never more than the limit.
func TestFSAccounting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 64 << 10
		f := newFS(limit)
		name := rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("/tmp/%s", rapid.SampledFrom([]string{"a", "b", "d", "d/a", "d/b", "d/e", "d/e/a"}).Draw(t, "name"))
		})
		// Errors are part of it: the books must be right after them too.
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 7).Draw(t, "op") {
			case 6:
				_ = f.Remove(rootCred, rapid.SampledFrom([]string{"/etc/passwd", "/etc", "/usr/bin"}).Draw(t, "base"), true)
			case 7:
				if h, err := f.Open(rootCred, "/etc/group", oWrite, 0); err == nil {
					_, _ = h.WriteAt([]byte("x"), 0)
				}
			case 0:
				_ = f.WriteFile(userCred, name.Draw(t, "to"), make([]byte, rapid.IntRange(0, 40<<10).Draw(t, "size")), 0o644)
			case 1:
				_ = f.Mkdir(userCred, name.Draw(t, "dir"), 0o755)
			case 2:
				_ = f.Remove(userCred, name.Draw(t, "gone"), rapid.Bool().Draw(t, "tree"))
			case 3:
				_ = f.Rename(userCred, name.Draw(t, "from"), name.Draw(t, "to"))
			case 4:
				if h, err := f.Open(userCred, name.Draw(t, "at"), oWrite|oCreate, fs.FileMode(0o644)); err == nil {
					_, _ = h.WriteAt(make([]byte, rapid.IntRange(0, 9000).Draw(t, "n")), rapid.Int64Range(0, 50<<10).Draw(t, "off"))
				}
			case 5:
				if h, err := f.Open(userCred, name.Draw(t, "log"), oWrite|oCreate|oAppend, fs.FileMode(0o644)); err == nil {
					_, _ = h.Write(make([]byte, rapid.IntRange(0, 9000).Draw(t, "n")))
				}
			}
			if got := f.root.size(); f.Used() != got {
				t.Fatalf("charged %d, there are %d", f.Used(), got)
			}
			if f.Used() > limit {
				t.Fatalf("%d bytes in a layer of %d", f.Used(), limit)
			}
		}
	})
}
