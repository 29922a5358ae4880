package node

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// prepareData makes the data directory and settles its path, which the runtime
// must not meet a symbolic link in. One that others could change is refused:
// programs that run as us, and what sandboxes start from, lie in it.
//
// Errors: KindDenied with the command that mends it.
func prepareData(c *config.Config) error {
	if c.Data == "" {
		return nil // refused by whoever needs one
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return sandbox.Wrap("data directory", c.Data, err)
	}
	dir, err := filepath.EvalSymlinks(c.Data)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return sandbox.Wrap("data directory", c.Data, err)
	}
	c.Data = dir
	for _, sub := range []string{"", "libexec", "templates", "instances", "machines", "machine-images", "wires", "run", "audit"} {
		if err := private(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	return nil
}

// private refuses a directory that somebody other than this user and root owns
// or may write to. One that does not exist is fine.
func private(dir string) error {
	st, err := os.Stat(dir) // a link is ours, or dir's parent is not private
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return sandbox.Wrap("data directory", dir, err)
	}
	if !st.IsDir() {
		return sandbox.Errorf("data directory", sandbox.KindDenied, "%s is not a directory", dir).WithHint("set FIREBREAK_DATA to another directory")
	}
	if st.Mode().Perm()&0o022 != 0 {
		return sandbox.Errorf("data directory", sandbox.KindDenied, "%s can be written by others (%v)", dir, st.Mode().Perm()).
			WithHint("chmod go-w %s, if nobody has changed it yet", dir)
	}
	if s, ok := st.Sys().(*syscall.Stat_t); ok && s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return sandbox.Errorf("data directory", sandbox.KindDenied, "%s belongs to user %d", dir, s.Uid).
			WithHint("chown it, or set FIREBREAK_DATA to a directory of your own")
	}
	return nil
}
