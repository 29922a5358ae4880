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
// A namespace that a process is in loses its link and keeps its name, so that the
// next Remove looks again.
//
// Errors: KindInternal when an object resisted, which then says so; KindInvalid.
//
// Cost: 10 to 30 ms, in which the kernel waits for whoever may still see the link.
func Remove(dir, id string) ([]sandbox.Object, error) {
	path, err := at(dir, id)
	if err != nil {
		return nil, err
	}
	var objects []sandbox.Object
	var trouble error
	if ns, err := openNamespace(path); err == nil {
		objects, trouble = empty(ns, path)
		ns.Close()
	} // else no namespace is mounted there
	failpoint.Hit("wire.remove/after-unmount")
	objects = append(objects, mounted(path))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		trouble = errors.Join(trouble, err)
	}
	_, err = os.Lstat(path)
	objects = append(objects, checked("file", path, errors.Is(err, fs.ErrNotExist), "lstat finds nothing"))
	return objects, verdict(id, objects, trouble)
}

// empty deletes what is in the namespace at path, and its mount unless somebody
// is in it.
func empty(ns *os.File, path string) ([]sandbox.Object, error) {
	link, inode, trouble := cut(ns)
	failpoint.Hit("wire.remove/after-link")
	space := inhabited(inode)
	if !space.Gone {
		return []sandbox.Object{link, space}, trouble
	}
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		trouble = errors.Join(trouble, &fs.PathError{Op: "unmount", Path: path, Err: err})
	}
	return []sandbox.Object{link, space}, trouble
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
		gone, err = unlink(LinkName)
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
	err := eachMount(func(point string) { o.Gone = o.Gone && point != path })
	if err != nil {
		o.Gone, o.Detail = false, err.Error()
	}
	return o
}

// inhabited looks for whoever is in a namespace.
func inhabited(inode string) sandbox.Object {
	o := checked("namespace", inode, true, "its link is gone, and no process is in it")
	dirs, err := os.ReadDir("/proc")
	if err != nil || inode == "" {
		o.Gone, o.Detail = false, fmt.Sprintf("it cannot be looked for: %v", err)
	}
	for _, d := range dirs {
		if _, err := strconv.Atoi(d.Name()); err != nil {
			continue
		}
		if ns, err := os.Readlink(filepath.Join("/proc", d.Name(), "ns/net")); err == nil && ns == inode {
			o.Gone, o.Detail = false, "process "+d.Name()+" is in it"
		}
	}
	return o
}

// eachMount calls f with the place of every mount.
func eachMount(f func(point string)) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	octal := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			f(octal.Replace(fields[4]))
		}
	}
	return nil
}
