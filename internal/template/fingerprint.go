package template

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"sync"
)

// hostWatched is what the host template's digest is made of, besides the trees,
// the interpreters and the files copied from /etc: what kind of file each is,
// and its size, modification time and link target.
//
// Installing, upgrading or removing a package changes at least its database.
// Files put into a tree by hand change the directories named here. What the
// digest does not see is an edit in place, by hand, of a file deeper in a tree:
// the price of an answer in a fraction of a millisecond. It says "unchanged",
// never "authentic".
var hostWatched = []string{
	// Package databases: Debian and its kin, RPM (three places), Alpine, Arch.
	dpkgStatus, "usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/Packages",
	"lib/apk/db/installed", "usr/lib/apk/db/installed", "var/lib/pacman/local",
	// Libraries people install into the system trees with other tools.
	"usr/lib/python3/dist-packages", "usr/lib/node_modules",
	"usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu",
	ldCache, alternatives, "usr/lib/os-release",
}

// skeletonSum makes a new version of this program lay the host template out
// anew when what it would write is different.
var skeletonSum = sync.OnceValue(func() string {
	h := sha256.New()
	fmt.Fprintln(h, "layout 2", skeletonDirs, hostTrees, packagedConfig)
	for _, m := range []map[string]string{skeletonFiles, skeletonLinks, caLinks} {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(h, "%q %q\n", k, m[k])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
})

// digest is the machine's fingerprint.
func (v hostView) digest() (string, error) {
	if err := v.usable(); err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintln(h, "firebreak host template", skeletonSum(), v.root, os.Geteuid())
	see := func(name string) {
		st, err := os.Lstat(v.path(name))
		switch {
		case err != nil:
			fmt.Fprintf(h, "%q -\n", name)
		case st.Mode().Type() == fs.ModeSymlink:
			target, _ := os.Readlink(v.path(name)) // gone meanwhile: "" differs from what it was
			fmt.Fprintf(h, "%q -> %q\n", name, target)
		case st.IsDir():
			fmt.Fprintf(h, "%q %v %d\n", name, st.Mode(), st.ModTime().UnixNano())
		default:
			fmt.Fprintf(h, "%q %v %d %d\n", name, st.Mode(), st.Size(), st.ModTime().UnixNano())
		}
	}
	for _, list := range [][]string{hostTrees, hostWatched, hostEtcFiles, hostBundles} {
		for _, name := range list {
			see(name)
		}
	}
	for _, lang := range languages {
		p := hostInterpreters[lang]
		real, ok := v.resolve(p)
		fmt.Fprintf(h, "%s %q %v\n", lang, real, ok)
		if !ok {
			continue
		}
		see(real[1:])
		if lang == Python { // python3.11 keeps its library in lib/python3.11
			see(path.Join("usr/lib", path.Base(real)))
		}
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
