package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/bundle"
)

// prunePrograms removes the programs of earlier versions that no process and no
// sandbox of the data directory uses any more.
func prunePrograms(data string) error {
	_, err := bundle.Prune(data, func() (map[string]bool, error) { return programsInUse(data) })
	return err
}

var programDigest = regexp.MustCompile(`libexec/([0-9a-f]{64})\b`)

// programsInUse names the sets that sandboxes use, of the server and of runs,
// whoever made them: what they were made from is in their configuration, and
// what runs is known to the kernel. What cannot be read is an error, so that
// nothing is removed then.
func programsInUse(data string) (map[string]bool, error) {
	used := map[string]bool{}
	note := func(text string) {
		for _, m := range programDigest.FindAllStringSubmatch(text, -1) {
			used[m[1]] = true
		}
	}
	owners, err := entries(filepath.Join(data, "run"))
	if err != nil {
		return nil, err
	}
	for _, dir := range append(owners, data) {
		instances, err := entries(filepath.Join(dir, "instances"))
		if err != nil {
			return nil, err
		}
		for _, i := range instances {
			b, err := os.ReadFile(filepath.Join(i, "config.json"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // not there yet, or any more
				return nil, err
			}
			note(string(b))
		}
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		// Not ours to read, or gone: then it is not one of ours either.
		if exe, err := os.Readlink(filepath.Join("/proc", p.Name(), "exe")); err == nil && strings.Contains(exe, "libexec/") {
			note(exe)
		}
	}
	return used, nil
}

// entries lists what is in a directory, nothing if there is none.
func entries(dir string) (paths []string, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range list {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths, err
}
