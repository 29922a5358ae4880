package vmimage

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// File is one file of an initial file system.
type File struct {
	Name string // absolute
	Mode fs.FileMode
	Data []byte
}

// WriteInitial writes a kernel's initial file system ("newc"): the files, and
// the directories above them. Order matters to nobody and is that of the names.
func WriteInitial(w io.Writer, files []File) error {
	a := &archive{w: bufio.NewWriter(w), made: map[string]bool{".": true, "/": true}}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range files {
		a.parents(strings.TrimPrefix(path.Clean(f.Name), "/"))
		a.add(strings.TrimPrefix(path.Clean(f.Name), "/"), 0o100000|uint32(f.Mode.Perm()), f.Data)
	}
	a.add("TRAILER!!!", 0, nil)
	return errors.Join(a.err, a.w.Flush())
}

type archive struct {
	w    *bufio.Writer
	n    int64
	ino  int
	made map[string]bool
	err  error
}

func (a *archive) parents(name string) {
	if d := path.Dir(name); !a.made[d] {
		a.made[d] = true
		a.parents(d)
		a.add(d, 0o040755, nil)
	}
}

func (a *archive) add(name string, mode uint32, content []byte) {
	a.ino++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	_, _ = a.Write(content)
	a.pad()
}

// Write remembers the first error.
func (a *archive) Write(b []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	n, err := a.w.Write(b)
	a.n += int64(n)
	a.err = err
	return n, err
}

func (a *archive) pad() { _, _ = a.Write(zeros[:(4-a.n%4)%4]) }

// Modules finds kernel modules below dir, such as /lib/modules/6.1.0, and what
// they depend on, in the order to load them. What the kernel has built in is
// left out.
//
// Errors: KindNotFound by fs.ErrNotExist when the kernel has no such module.
func Modules(dir string, names ...string) ([]string, error) {
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	inKernel := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		inKernel[moduleName(strings.TrimSpace(line))] = true
	}
	files, needs := map[string]string{}, map[string][]string{}
	for line := range strings.Lines(string(deps)) {
		file, rest, _ := strings.Cut(line, ":")
		name := moduleName(file)
		files[name] = filepath.Join(dir, file)
		for _, d := range strings.Fields(rest) {
			needs[name] = append(needs[name], moduleName(d))
		}
	}
	var order []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if seen[name] || inKernel[name] {
			return nil
		}
		seen[name] = true
		if files[name] == "" {
			return &fs.PathError{Op: "module", Path: filepath.Join(dir, name), Err: fs.ErrNotExist}
		}
		for _, d := range needs[name] {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, files[name])
		return nil
	}
	for _, n := range names {
		if err := add(moduleName(n)); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName is a module's name from its file's: dashes are underscores.
func moduleName(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(base, "-", "_")
}
