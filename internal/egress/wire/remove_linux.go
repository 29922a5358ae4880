package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// List names the wires below dir: whole ones, those whose maker died over them,
// and those whose namespace went with the machine. Each is to be reopened or
// removed. A directory that is missing has none.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, sandbox.Wrap("list wires", "", err)
	}
	var ids []string
	for _, e := range entries {
		if sandbox.InstanceID(e.Name()).Valid() {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Remove deletes the link, whoever has its far end open, and the namespace's
// mount and name, and looks for each again: link, namespace, mount and file are
// the objects it returns. Of a wire that is not there it returns mount and file,
// which are gone; so it is idempotent, and finishes what another Remove or Open
// began.
//
// Errors: KindInternal when an object resisted, which then says so; KindInvalid.
//
// Cost: some milliseconds, in which the kernel waits for the link's last frame.
func Remove(dir, id string) ([]sandbox.Object, error) {
	path, err := at(dir, id)
	if err != nil {
		return nil, err
	}
	var objects []sandbox.Object
	var errs []error
	for range 8 { // once; more often only where somebody mounted on it again
		ns, err := openNamespace(path)
		if err != nil {
			break // no namespace is mounted there
		}
		object, inode, err := cut(ns)
		ns.Close()
		errs = append(errs, err)
		objects = append(objects, object)
		failpoint.Hit("wire.remove/after-link")
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, &fs.PathError{Op: "unmount", Path: path, Err: err})
			break
		}
		objects = append(objects, holds(inode))
	}
	failpoint.Hit("wire.remove/after-unmount")
	objects = append(objects, mounted(path))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	_, err = os.Lstat(path)
	objects = append(objects, checked("file", path, errors.Is(err, fs.ErrNotExist), "lstat finds nothing"))
	return objects, verdict(id, objects, errors.Join(errs...))
}

// cut deletes the link of a namespace.
func cut(ns *os.File) (link sandbox.Object, inode string, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		return checked("link", LinkName, false, "not looked for"), "", err
	}
	inode = fmt.Sprintf("net:[%d]", st.Ino)
	var gone bool
	err = visit(into(ns), func() (err error) {
		gone, err = unlink()
		return err
	})
	return checked("link", LinkName+" in "+inode, gone, "netlink finds no such link in the namespace"), inode, err
}

// verdict turns what is left into the error of Remove, and tells each object why.
func verdict(id string, objects []sandbox.Object, trouble error) error {
	var left []string
	for k := range objects {
		o := &objects[k]
		if o.Gone {
			continue
		}
		left = append(left, o.Kind+" "+o.Name)
		if o.Detail == "" && trouble != nil {
			o.Detail = trouble.Error()
		}
	}
	if left == nil {
		return nil // what failed on the way did no harm
	}
	return sandbox.Errorf("remove wire", sandbox.KindInternal, "left: %s: %w", strings.Join(left, ", "), errors.Join(trouble, errResists)).
		WithID(id).WithHint("remove it again; the receipt names what resists")
}

var errResists = errors.New("it resists")

func checked(kind, name string, gone bool, check string) sandbox.Object {
	return sandbox.Object{Kind: kind, Name: name, Gone: gone, Check: check, Checked: time.Now().UTC()}
}

// mounted looks for the mount.
func mounted(path string) sandbox.Object {
	o := checked("mount", path, true, "not in /proc/self/mountinfo")
	err := eachMount(func(root, point string) {
		if point == path {
			o.Gone = false
		}
	})
	if err != nil {
		o.Gone, o.Detail = false, err.Error()
	}
	return o
}

// holds looks for whoever keeps a namespace.
func holds(inode string) sandbox.Object {
	o := checked("namespace", inode, true, "no process is in it, and no mount in /proc/self/mountinfo holds it")
	err := eachMount(func(root, point string) {
		if root == inode {
			o.Gone, o.Detail = false, "mounted at "+point
		}
	})
	dirs, errProc := os.ReadDir("/proc")
	for _, d := range dirs {
		if _, err := strconv.Atoi(d.Name()); err != nil {
			continue
		}
		if ns, err := os.Readlink(filepath.Join("/proc", d.Name(), "ns/net")); err == nil && ns == inode {
			o.Gone, o.Detail = false, "process "+d.Name()+" is in it"
		}
	}
	if err := errors.Join(err, errProc); err != nil {
		o.Gone, o.Detail = false, err.Error()
	}
	return o
}

// eachMount calls f with the root and the mount point of every mount.
func eachMount(f func(root, point string)) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	octal := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			f(fields[3], octal.Replace(fields[4]))
		}
	}
	return nil
}
