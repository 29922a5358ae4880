package template

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// furnish puts into an image's root what a sandbox needs: the mount points, the
// account user code runs as, the files a backend binds over. Nothing the image
// brought is written through: what stands in the way is replaced.
func furnish(root *os.Root, owners bool) error {
	for _, d := range skeletonDirs {
		if strings.HasPrefix(d.path, "usr") || strings.HasPrefix(d.path, "var/") && d.path != "var/tmp" || d.path == "mnt" || d.path == "media" || d.path == "opt" || d.path == "srv" {
			continue // the image's own affair
		}
		if err := ownDirectory(root, d.path); err != nil {
			return err
		}
		if d.path == "root" || d.path == "etc" || d.path == "var" || d.path == "home" {
			continue // with the image's mode
		}
		if err := root.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	// The guest runtime is bound here, and nothing of the image may pass for it.
	if err := root.RemoveAll(GuestDir[1:]); err != nil {
		return err
	}
	if err := ownDirectory(root, GuestDir[1:]); err != nil {
		return err
	}
	for _, name := range []string{"etc/passwd", "etc/group"} {
		lines, err := ownLines(root, name)
		if err == nil {
			err = replaceIn(root, name, lines)
		}
		if err != nil {
			return err
		}
	}
	if err := ownDirectory(root, path.Dir(bootID)); err != nil {
		return err
	}
	for _, name := range []string{"etc/hosts", "etc/resolv.conf", "etc/machine-id", bootID} {
		if err := replaceIn(root, name, []byte(skeletonFiles[name])); err != nil {
			return err
		}
	}
	if err := linkIn(root, "etc/hostname", skeletonLinks["etc/hostname"]); err != nil {
		return err
	}
	home := UserHome[1:]
	if owners {
		return root.Lchown(home, UserID, UserID)
	}
	return root.Chmod(home, 0o777) // see skeleton
}

// ownDirectory makes name a directory that no link leads away from. The top of
// the tree is ours alone, so what is looked at does not change.
func ownDirectory(root *os.Root, name string) error {
	at := ""
	for c := range strings.SplitSeq(name, "/") {
		at = path.Join(at, c)
		st, err := root.Lstat(at)
		if err == nil && st.IsDir() {
			continue
		}
		if err == nil {
			err = root.Remove(at)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := root.Mkdir(at, 0o755); err != nil {
			return noSpace(err)
		}
		if err := root.Chmod(at, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// maxAccounts bounds what of an image's account files is read.
const maxAccounts = 1 << 20

// ownLines is an image's account file with our account in it: first after root,
// because whoever asks for the name of uid 1000 gets the first line.
func ownLines(root *os.Root, name string) ([]byte, error) {
	ours := fmt.Sprintf("%s:x:%d:%d:%s:%s:%s", UserName, UserID, UserID, UserName, UserHome, "/bin/sh")
	first := "root:x:0:0:root:/root:/bin/sh"
	if name == "etc/group" {
		ours, first = fmt.Sprintf("%s:x:%d:", UserName, UserID), "root:x:0:"
	}
	old, err := readIn(root, name)
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(nil)
	rest := make([]string, 0, 16)
	for line := range strings.Lines(string(old)) {
		line = strings.TrimRight(line, "\r\n")
		switch account, _, ok := strings.Cut(line, ":"); {
		case !ok || account == UserName:
		case account == "root":
			first = line
		default:
			rest = append(rest, line)
		}
	}
	for _, line := range append([]string{first, ours}, rest...) {
		out.WriteString(line + "\n")
	}
	return out.Bytes(), nil
}

// readIn reads a small regular file; nil when there is none.
func readIn(root *os.Root, name string) ([]byte, error) {
	st, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Size() > maxAccounts {
		return nil, refuse(sandbox.KindTooLarge, "/%s has %s", name, sandbox.FormatSize(st.Size()))
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func replaceIn(root *os.Root, name string, content []byte) error {
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return noSpace(err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = root.Chtimes(name, epoch, epoch)
	}
	return noSpace(errors.Join(err, f.Close()))
}

// linkIn makes name a link, whatever it was.
func linkIn(root *os.Root, name, target string) error {
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	return noSpace(root.Symlink(target, name))
}

// lookIn follows name as the guest would and reports what it leads to.
func lookIn(root *os.Root, name string) (fs.FileInfo, bool) {
	cur, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		c := rest[0]
		rest = rest[1:]
		next := path.Join(cur, c)
		if c == ".." {
			next = path.Dir(cur)
		}
		st, err := root.Lstat(next)
		if err != nil {
			return nil, false
		}
		if st.Mode().Type() != fs.ModeSymlink {
			cur = next
			continue
		}
		target, err := root.Readlink(next)
		if links++; err != nil || links > 40 {
			return nil, false
		}
		if path.IsAbs(target) {
			cur = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	st, err := root.Lstat(cur)
	return st, err == nil
}

// interpreters are the programs that run a language's code, as the orchestrator
// calls them.
var interpreters = map[string]string{Python: "python3", Node: "node", Shell: "sh"}

// languagesIn looks for interpreters along the PATH programs of the image will
// have.
func languagesIn(root *os.Root, env map[string]string) []string {
	found := []string{}
	for lang, program := range interpreters {
		for dir := range strings.SplitSeq(env["PATH"], ":") {
			if !path.IsAbs(dir) {
				continue
			}
			if st, ok := lookIn(root, path.Join(dir, program)[1:]); ok && st.Mode().IsRegular() && st.Mode()&0o001 != 0 {
				found = append(found, lang)
				break
			}
		}
	}
	return sortedLanguages(found)
}
