package cli

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// collect lists what --input brings: one file, or a directory's files. Symbolic
// links inside a directory are followed as long as they stay inside it: a
// directory from a stranger must not carry our own files into the sandbox.
func collect(t transfer) ([]client.Input, error) {
	st, err := os.Stat(t.src)
	if err != nil {
		return nil, inputError(t.src, err)
	}
	if !st.IsDir() {
		if !st.Mode().IsRegular() {
			return nil, sandbox.Errorf("--input", sandbox.KindInvalid, "is neither a file nor a directory").WithID(t.src)
		}
		return []client.Input{{
			Path: t.dst, Size: st.Size(), Mode: uint32(st.Mode().Perm()),
			Open: func() (io.ReadCloser, error) { return os.Open(t.src) },
		}}, nil
	}
	var inputs []client.Input
	err = walkFiles(t.src, func(rel string, st fs.FileInfo, open func() (io.ReadCloser, error)) error {
		inputs = append(inputs, client.Input{Path: path.Join(t.dst, rel), Size: st.Size(), Mode: uint32(st.Mode().Perm()), Open: open})
		return nil
	})
	return inputs, err
}

func inputError(src string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return sandbox.Errorf("read", sandbox.KindInvalid, "%w", err).WithID(src)
}

// linkHint is what to do about links that are not followed.
const linkHint = "bring what the link points to by itself"

// walkFiles calls f for every regular file below dir, in lexical order, with
// its slash-separated path. Nothing outside dir is ever opened. What is neither
// file, directory nor link to one is an error: it would be missing otherwise.
func walkFiles(dir string, f func(rel string, st fs.FileInfo, open func() (io.ReadCloser, error)) error) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return inputError(name, err)
		}
		if d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return inputError(name, err)
		}
		open := func() (io.ReadCloser, error) {
			root, err := os.OpenRoot(dir)
			if err != nil {
				return nil, err
			}
			defer root.Close()
			return root.Open(rel)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return inputError(dir, err)
		}
		defer root.Close()
		st, err := root.Stat(rel) // follows links, refuses those that leave dir
		switch {
		case err != nil && d.Type()&fs.ModeSymlink != 0:
			return sandbox.Errorf("read", sandbox.KindInvalid, "is a link out of %s, or to nothing", dir).WithID(name).WithHint(linkHint)
		case err != nil:
			return inputError(name, err)
		case d.Type()&fs.ModeSymlink != 0 && st.IsDir():
			return sandbox.Errorf("read", sandbox.KindInvalid, "is a link to a directory").WithID(name).WithHint(linkHint)
		case !st.Mode().IsRegular():
			return sandbox.Errorf("read", sandbox.KindInvalid, "is neither a file nor a directory").WithID(name)
		}
		return f(filepath.ToSlash(rel), st, open)
	})
}

// inside reports whether file is dir or below it, and the path from there.
// Relative sandbox paths start at the home, which the server may spell out.
func inside(dir, file string) (rest string, ok bool) {
	file = path.Clean(file)
	for _, d := range []string{dir, path.Join("/home/user", dir)} {
		d = path.Clean(d)
		switch {
		case d == file:
			return "", true
		case d == "." && !strings.HasPrefix(file, "/") && file != ".." && !strings.HasPrefix(file, "../"):
			return file, true
		case strings.HasPrefix(file, strings.TrimSuffix(d, "/")+"/"):
			return strings.TrimPrefix(file, strings.TrimSuffix(d, "/")+"/"), true
		}
	}
	return "", false
}

// localFile is a file being written here. It appears under its name only once
// it is complete.
type localFile struct {
	*os.File
	root *os.Root // the directory it is in
	tmp  string   // name while it grows, relative to root
	base string   // final name, relative to root
	name string   // for people
}

// create starts a file at dst, or below the directory dst at rest. dst is the
// user's and may be anything; rest comes from the sandbox, so it is opened
// below dst and cannot leave it, whatever links are there.
func create(dst, rest string) (*localFile, error) {
	dir, base := filepath.Split(filepath.Clean(dst))
	if rest != "" {
		dir, base = dst, filepath.FromSlash(rest)
		if !filepath.IsLocal(base) {
			return nil, sandbox.Errorf("write", sandbox.KindProtocol, "the sandbox names a path outside of its directory").WithID(rest)
		}
	}
	if dir == "" {
		dir = "."
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	f := &localFile{root: root, base: base, name: filepath.Join(dir, base)}
	if sub := filepath.Dir(base); sub != "." {
		if err := root.MkdirAll(sub, 0o777); err != nil {
			root.Close()
			return nil, err
		}
	}
	if st, err := root.Stat(base); err == nil && st.IsDir() {
		root.Close()
		return nil, sandbox.Errorf("write", sandbox.KindIsDirectory, "is a directory here").WithID(f.name)
	}
	f.tmp = filepath.Join(filepath.Dir(base), "."+string(sandbox.NewRunID())+".part")
	if f.File, err = root.OpenFile(f.tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666); err != nil {
		root.Close()
		return nil, err
	}
	return f, nil
}

// commit ends the file: in place if err is nil, gone otherwise. It returns err
// or what went wrong here.
func (f *localFile) commit(err error) error {
	defer f.root.Close()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.root.Rename(f.tmp, f.base)
	}
	if err != nil {
		_ = f.root.Remove(f.tmp)
	}
	return err
}
