package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Open makes the wire id below dir, which it makes if need be, and opens its far
// end. The path of the namespace is <dir>/<id>.
//
// It returns a whole wire, or leaves nothing behind. Errors: KindInvalid for an
// id or a path that is none; KindExists when there is something of that name;
// KindUnsupported where wires cannot be made, with a hint; KindCapacity.
//
// Cost: 1 to 2 ms. It is safe for concurrent use with different ids.
func Open(dir, id string) (*Link, error) {
	path, err := at(dir, id)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, sandbox.Wrap("open wire", id, err)
	}
	// The name is made first, and says that there may be more.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrExist) {
		return nil, sandbox.Errorf("open wire", sandbox.KindExists, "the wire exists").WithID(id)
	}
	if err != nil {
		return nil, sandbox.Wrap("open wire", id, err)
	}
	f.Close()
	step("after-name")
	var tap *os.File
	err = visit(fresh, func() error {
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the network namespace: %w", err)
		}
		step("after-mount")
		tap, err = build(id)
		return err
	})
	if err != nil {
		_, left := Remove(dir, id)
		return nil, errors.Join(explain("open wire", id, err), left)
	}
	return &Link{Wire: wireAt(path), Tap: tap}, nil
}

// patience is how long Reopen waits for somebody else to let go of a TAP: the
// router of a server that was killed takes a moment to end.
const patience = 2 * time.Second

// Reopen returns a wire that is there with a new descriptor of its far end, and
// its filter put in again. It waits up to two seconds for whoever has the last
// one. The link stays as it is: with a gVisor sandbox on it, without an address.
//
// Errors: KindNotFound when there is no wire of that name, or one whose maker
// died over it, or whose namespace went with the machine: Remove it. KindConflict
// when the far end is in use.
//
// Cost: 5 to 20 ms, in which the kernel waits for whoever may still see the old
// filter.
func Reopen(dir, id string) (*Link, error) {
	path, err := at(dir, id)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(path)
	if err != nil {
		return nil, sandbox.Errorf("reopen wire", sandbox.KindNotFound, "no such wire: %w", err).WithID(id)
	}
	defer ns.Close()
	var tap *os.File
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err = visit(into(ns), func() (err error) {
			tap, err = reattach(id)
			return err
		})
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, sandbox.Errorf("reopen wire", sandbox.KindConflict, "somebody has the far end: %w", err).WithID(id)
	case errors.Is(err, errNoLink):
		return nil, sandbox.Errorf("reopen wire", sandbox.KindNotFound, "no such wire: %w", err).WithID(id)
	case err != nil:
		return nil, explain("reopen wire", id, err)
	}
	return &Link{Wire: wireAt(path), Tap: tap}, nil
}

// at is where the namespace of a wire is.
func at(dir, id string) (string, error) {
	if !filepath.IsAbs(dir) {
		return "", sandbox.Errorf("wire", sandbox.KindInvalid, "directory %q is not an absolute path", dir)
	}
	if !sandbox.InstanceID(id).Valid() {
		return "", sandbox.Errorf("wire", sandbox.KindInvalid, "instance id %q is not valid", id)
	}
	return filepath.Join(dir, id), nil
}

// openNamespace opens what is at path if it is a namespace.
func openNamespace(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, err
	}
	if st.Type != unix.NSFS_MAGIC {
		f.Close()
		return nil, errors.New("its namespace is gone")
	}
	return f, nil
}

var errNoFilter = errors.New("put in the nftables filter")

// explain gives the error of making a wire its kind and a hint.
func explain(op, id string, err error) error {
	refuse := func(hint string) error {
		return sandbox.Errorf(op, sandbox.KindUnsupported, "%w", err).WithID(id).WithHint("%s", hint)
	}
	switch {
	case sandbox.KindOf(err) == sandbox.KindCapacity, errors.Is(err, unix.ENOSPC): // of namespaces: user.max_net_namespaces
		return sandbox.Errorf(op, sandbox.KindCapacity, "%w", err).WithID(id)
	case os.Geteuid() != 0:
		return refuse("sandboxes with network rules need Firebreak to run as root")
	case errors.Is(err, errNoFilter):
		return refuse("the kernel must have nftables with the netdev family and its egress hook: Linux 5.16 or later with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_EGRESS; " +
			"a wire without this filter is not made")
	case errors.Is(err, errNoForward):
		return refuse("the kernel must have nftables' fwd in the netdev family: CONFIG_NFT_FWD_NETDEV; without it a machine gets no network")
	case errors.Is(err, fs.ErrNotExist):
		return refuse("the kernel must have TAP devices: `modprobe tun`; in a container, pass /dev/net/tun")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return refuse("making a network namespace needs CAP_SYS_ADMIN and CAP_NET_ADMIN and a writable /proc/sys/net; in a container, run it privileged")
	}
	return sandbox.Wrap(op, id, err)
}

// step is a place where the maker of a wire may die.
func step(name string) { failpoint.Hit("wire.open/" + name) }
