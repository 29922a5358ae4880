package control

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// routerID is the uid and the gid of routers of a keeper that is root. It is
// nobody else's: 65534 is everybody's who had no better idea, below 65536 are
// people, packages and DynamicUser=, from 100000 to 1879048191 the ranges of
// containers and user namespaces; systemd's table of uids has what follows, up to
// the sign bit, as used by nobody.
const routerID = 1_879_060_000

// maxFiles is how many descriptors a router may have: one for each wire and each
// connection, of which a wire has at most 1024. A keeper that may raises the limit
// to that.
const maxFiles = 1 << 18

// Confine takes from this process what a router does not need, for good. What has
// to be taken before a program begins (uid, capabilities, files) was: it looks
// whether that is so. Notes are sentences about what is missing here. Errors: it
// was not started by a keeper; the kernel refuses.
func Confine() (notes []string, err error) {
	if notes, err = confined(); err != nil {
		return nil, err
	}
	files := unix.Rlimit{Cur: maxFiles, Max: maxFiles}
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return nil, err
	}
	files.Max = min(files.Max, now.Max)
	files.Cur = files.Max
	for _, l := range []struct {
		what  int
		limit unix.Rlimit
	}{{unix.RLIMIT_CORE, unix.Rlimit{}}, {unix.RLIMIT_FSIZE, unix.Rlimit{}}, {unix.RLIMIT_NOFILE, files}} {
		if err := unix.Setrlimit(l.what, &l.limit); err != nil {
			return nil, fmt.Errorf("setrlimit: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("prctl: %w", err)
	}
	time.Local = time.UTC // which is in no file
	return notes, filter()
}

// confined looks whether this process has lost what its keeper should have taken.
func confined() (notes []string, err error) {
	no := errors.New("a router is started by a server, which takes its privileges first")
	uid := os.Getuid()
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil || nnp != 1 || uid == 0 || uid != os.Geteuid() || os.Getgid() == 0 {
		return nil, no
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return nil, fmt.Errorf("capget: %w", err)
	}
	if caps != [2]unix.CapUserData{} {
		return nil, no
	}
	if uid != routerID {
		notes = append(notes, "the router has the uid of who started it, not one of its own")
	}
	for _, bounding := range capabilities {
		if bounding && uid == routerID {
			return nil, no
		}
	}
	if landlockABI() == 0 {
		return append(notes, "this kernel has no Landlock: files are denied to the router by seccomp alone"), nil
	}
	return notes, landlocked()
}
