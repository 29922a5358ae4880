package firecracker

import (
	"errors"
	"path/filepath"
	"regexp"
	"strconv"
)

// Jail is what the jailer makes around a Firecracker process: a root directory
// with what it needs, a user of its own, and Firecracker's own seccomp filter. Its
// cgroup is that of whoever starts the jailer.
type Jail struct {
	Base        string // directory for the jail, of this instance alone
	Firecracker string // its program, statically linked, which the jailer copies
	ID          string
	User        int    // uid and gid
	NetNS       string // network namespace to enter; "": that of whoever starts the jailer
	FileSize    int64  // of the largest file it may write
}

// Names inside a jail.
const (
	APISocket   = "/api.sock"
	VSockSocket = "/vsock.sock"
)

var reID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// Validate refuses what the jailer would, and a jail whose process would be root.
func (j Jail) Validate() error {
	switch {
	case !filepath.IsAbs(j.Base), !filepath.IsAbs(j.Firecracker):
		return errors.New("jail: paths must be absolute")
	case !reID.MatchString(j.ID):
		return errors.New("jail: the id is not letters, digits and dashes, at most 64")
	case j.NetNS != "" && !filepath.IsAbs(j.NetNS):
		return errors.New("jail: the network namespace's path must be absolute")
	case j.User <= 0:
		return errors.New("jail: the process must have a user of its own")
	case j.FileSize <= 0:
		return errors.New("jail: files without a bound")
	}
	return nil
}

// Root is the root directory as the host sees it.
func (j Jail) Root() string { return Roots(j.Base, j.ID, filepath.Base(j.Firecracker)) }

// Roots is where the root of a jail lies; name is that of Firecracker's program.
func Roots(base, id, name string) string { return filepath.Join(base, name, id, "root") }

// Args are the jailer's arguments. It ends by becoming Firecracker, in the same
// process. Firecracker's filter is left on: no flag here touches it.
func (j Jail) Args() []string {
	user := strconv.Itoa(j.User)
	args := []string{
		"--id", j.ID, "--exec-file", j.Firecracker, "--uid", user, "--gid", user, "--chroot-base-dir", j.Base,
		"--resource-limit", "no-file=256", "--resource-limit", "fsize=" + strconv.FormatInt(j.FileSize, 10),
	}
	if j.NetNS != "" {
		args = append(args, "--netns", j.NetNS)
	}
	return append(args, "--", "--api-sock", APISocket, "--level", "Error")
}
