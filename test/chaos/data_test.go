package chaos

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDataDirectoryOfOthers: whoever may write the data directory decides what
// runs as root, so one that others may write is refused.
func TestDataDirectoryOfOthers(t *testing.T) {
	for name, spoil := range map[string]func(data string) error{
		"world-writable":   func(data string) error { return os.Chmod(data, 0o777) },
		"foreign":          func(data string) error { return os.Chown(data, 1234, 1234) },
		"writable-libexec": func(data string) error { return os.Chmod(filepath.Join(data, "libexec"), 0o775) },
		"linked-libexec": func(data string) error {
			if err := os.Remove(filepath.Join(data, "libexec")); err != nil {
				return err
			}
			return os.Symlink("/tmp", filepath.Join(data, "libexec"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, filepath.Join(t.TempDir(), "data"))
			if err := os.Mkdir(filepath.Join(w.data, "libexec"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := spoil(w.data); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"run", "-c", "print(6*7)"}, {"serve", "--listen", "127.0.0.1:0"}} {
				out, err := w.command(args...).CombinedOutput()
				if err == nil || !strings.Contains(string(out), w.data) || !strings.Contains(string(out), "hint:") {
					t.Errorf("%v: %v, %s", args, err, out)
				}
			}
		})
	}
}

// TestDataDirectoryLinked: a symbolic link to a data directory elsewhere is
// ordinary administration.
func TestDataDirectoryLinked(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, filepath.Join(dir, "data"))
	real := w.data
	w.data = filepath.Join(dir, "link")
	if err := os.Symlink(real, w.data); err != nil {
		t.Fatal(err)
	}
	if out, err := w.command("run", "-c", "print(6*7)").CombinedOutput(); err != nil || string(out) != "42\n" {
		t.Errorf("%v, %s", err, out)
	}
}

// TestUmask: what a guest must be able to read does not depend on the umask of
// whoever unpacked it, nor may others write it.
func TestUmask(t *testing.T) {
	for _, mask := range []string{"077", "000"} {
		w := newWorld(t, filepath.Join(t.TempDir(), "data"))
		cmd := w.command("run", "-c", "print(6*7)")
		cmd.Args = append([]string{"sh", "-c", `umask ` + mask + ` && exec "$0" "$@"`}, cmd.Args...)
		cmd.Path = "/bin/sh"
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "42\n" {
			t.Errorf("umask %s: %v, %s", mask, err, out)
		}
		if err := filepath.WalkDir(w.data, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o022 != 0 && info.Mode()&(os.ModeSymlink|os.ModeSticky) == 0 {
				t.Errorf("umask %s: others may write %s (%v)", mask, p, info.Mode())
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}
