package template

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// skeletonDirs is in every root: mount points, places programs expect, the home.
// A backend must not mount anywhere else, since a missing mount point would be
// created in the shared tree.
var skeletonDirs = []struct {
	path string
	mode fs.FileMode
}{
	{"dev", 0o755}, {"proc", 0o755}, {"sys", 0o755}, {"run", 0o755},
	{"tmp", 0o777 | fs.ModeSticky}, {"var/tmp", 0o777 | fs.ModeSticky},
	{GuestDir[1:], 0o755},
	{"root", 0o700}, {UserHome[1:], 0o755},
	{"mnt", 0o755}, {"media", 0o755}, {"opt", 0o755}, {"srv", 0o755},
	{"etc", 0o755}, {"home", 0o755}, {"usr", 0o755}, {"usr/local", 0o755}, {"var", 0o755}, {"var/cache", 0o755}, {"var/lib", 0o755}, {"var/log", 0o755},
	{"usr/local/bin", 0o755}, {"usr/local/lib", 0o755}, {"usr/local/sbin", 0o755}, {"usr/local/share", 0o755},
}

// skeletonFiles is the synthetic part of /etc. Each is a regular file that a
// backend may bind over.
var skeletonFiles = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n" +
		fmt.Sprintf("%s:x:%d:%d:%s:%s:%s\n", UserName, UserID, UserID, UserName, UserHome, "/bin/sh") +
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":       fmt.Sprintf("root:x:0:\ntty:x:5:\n%s:x:%d:\nnogroup:x:65534:\n", UserName, UserID),
	"etc/hosts":       "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
	"etc/resolv.conf": "# no name server: this sandbox has no network\n",
	// dns matters only when a backend with a network fills in resolv.conf.
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n" +
		"protocols: files\nservices: files\nethers: files\nrpc: files\n",
	"etc/shells":      "/bin/sh\n/bin/bash\n",
	"etc/timezone":    "Etc/UTC\n",
	"etc/host.conf":   "multi on\n",
	"etc/ld.so.conf":  "include /etc/ld.so.conf.d/*.conf\n",
	"etc/environment": "",
	// Every sandbox has its own: see internal/backend/gvisor. What binds over the
	// second is bound again, with all of proc, where that is mounted.
	"etc/machine-id": "",
	bootID:           "",
}

// bootID is a file of proc that a backend may bind over. It has to be in the root as
// well: what binds looks for it there first.
const bootID = "proc/sys/kernel/random/boot_id"

var skeletonLinks = map[string]string{
	"etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
	"etc/mtab":      "../proc/self/mounts",
	"etc/hostname":  "../proc/sys/kernel/hostname", // whatever it is, in a sandbox that was made of another, too
	"var/run":       "/run",
	"var/lock":      "/run",
}

// skeleton puts the parts every root has into dir, an existing directory,
// replacing what packages brought along under the same names.
func skeleton(dir string) error {
	for _, d := range skeletonDirs {
		p := filepath.Join(dir, d.path)
		if err := makeDirs(p); err != nil {
			return err
		}
		if err := os.Chmod(p, d.mode); err != nil {
			return err
		}
	}
	for name, content := range skeletonFiles {
		if err := replaceFile(filepath.Join(dir, name), []byte(content)); err != nil {
			return err
		}
	}
	for name, target := range skeletonLinks {
		if err := replaceLink(filepath.Join(dir, name), target); err != nil {
			return err
		}
	}
	home := filepath.Join(dir, UserHome)
	err := os.Lchown(home, UserID, UserID)
	if errors.Is(err, fs.ErrPermission) || err != nil && os.Geteuid() != 0 {
		// An ordinary user owns the store. Every sandbox writes to its own
		// layer, so nobody gains anything by this.
		err = os.Chmod(home, 0o777)
	}
	return err
}

// makeDirs is os.MkdirAll with mode 0755 whatever the umask: user code has to
// be able to look into all of them.
func makeDirs(path string) error {
	var made []string
	for d := path; ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); err == nil || d == filepath.Dir(d) {
			break
		}
		made = append(made, d)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	for _, d := range made {
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func replaceFile(path string, content []byte) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

func replaceLink(path, target string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// rootPath is where user code finds its programs.
const rootPath = UserHome + "/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// sortedLanguages puts names into the order templates list them.
func sortedLanguages(names []string) []string {
	return slices.DeleteFunc(slices.Clone(languages), func(l string) bool { return !slices.Contains(names, l) })
}

// below reports whether path is dir or something in it. Both are clean.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
