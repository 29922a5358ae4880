package template

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// syncTree puts everything below dir on stable storage. One syncfs is far
// cheaper than an fsync for each of some ten thousand files.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// settle gives everything in root, with or without files, and root itself the
// modification time epoch. Directories come after what they hold.
func settle(root string, files bool) error {
	stamp := []unix.Timespec{unix.NsecToTimespec(epoch.UnixNano()), unix.NsecToTimespec(epoch.UnixNano())}
	var dirs []string
	touch := func(p string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, stamp, unix.AT_SYMLINK_NOFOLLOW)
	}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, p)
			return nil
		}
		if d.Type().IsRegular() && !files {
			return nil
		}
		return touch(p)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = touch(dirs[i])
	}
	return err
}
