package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/archive"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// A directory travels as one tar file, which neither side ever holds.

// uploadTree copies what is in the directory src into the directory into.
func uploadTree(ctx context.Context, sb *client.Sandbox, src, into string) error {
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := packTree(w, src)
		w.CloseWithError(err) // nil is the end
		packed <- err
	}()
	_, err := sb.WriteArchive(ctx, into, r)
	_ = r.Close() // never fails
	if perr := <-packed; perr != nil && !errors.Is(perr, io.ErrClosedPipe) {
		return perr // and what the server says of it is that it ended early
	}
	return err
}

// packTree writes what is in dir as a tar file. Nothing outside dir is opened;
// symbolic links that might lead out, and what is neither file, directory nor link,
// are errors: they would be missing otherwise.
func packTree(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return inputError(dir, err)
	}
	defer root.Close()
	out := archive.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(rel string, d fs.DirEntry, err error) error {
		if err == nil && rel != "." {
			err = sendEntry(out, root, rel)
		}
		if e := (*sandbox.Error)(nil); err == nil || errors.Is(err, io.ErrClosedPipe) {
			return err
		} else if errors.As(err, &e) {
			return e.WithID(filepath.Join(dir, rel))
		}
		return inputError(filepath.Join(dir, rel), err)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

func sendEntry(out *archive.Writer, root *os.Root, rel string) error {
	st, err := root.Lstat(rel)
	if err != nil {
		return err
	}
	e := archive.Entry{Path: rel, Mode: st.Mode().Type() | st.Mode().Perm(), Modified: st.ModTime()}
	switch {
	case st.IsDir():
		return out.Add(e, nil)
	case e.Mode.Type() == fs.ModeSymlink:
		if e.Target, err = root.Readlink(rel); err != nil {
			return err
		}
		if why := archive.RefusedLink(rel, e.Target); why != "" {
			return sandbox.Errorf("read", sandbox.KindInvalid, "%s", why).WithHint(linkHint)
		}
		return out.Add(e, nil)
	case !st.Mode().IsRegular():
		return sandbox.Errorf("read", sandbox.KindInvalid, "is neither a file nor a directory")
	}
	f, err := root.Open(rel)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err = f.Stat(); err != nil {
		return err
	}
	e.Size = st.Size()
	return out.Add(e, f)
}

// tree copies what is in the directory src of the sandbox into dst, which is made.
func (d *downloader) tree(ctx context.Context, src, dst string) error {
	if err := os.MkdirAll(dst, 0o777); err != nil {
		return sandbox.Wrap("cp", dst, err)
	}
	root, err := os.OpenRoot(dst)
	if err != nil {
		return sandbox.Wrap("cp", dst, err)
	}
	defer root.Close()
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := d.sb.ReadArchive(ctx, src, w, func(what string) { d.skip(src, what) })
		w.CloseWithError(err) // nil is the end
		sent <- err
	}()
	in := archive.NewReader(r)
	for err == nil {
		var e archive.Entry
		if e, err = in.Next(); err == nil {
			err = d.entry(root, src, dst, e, in)
		}
	}
	if err == io.EOF {
		_, err = io.Copy(io.Discard, r) // the padding, and how it ended
	}
	_ = r.Close() // never fails
	if serr := <-sent; err == nil {
		err = serr
	}
	return err
}

func (d *downloader) skip(src, what string) { d.app.say("skipped %s", oneLine(path.Join(src, what))) }

// entry stores what a sandbox made below dst. What follows no rule of an archive was
// refused before.
func (d *downloader) entry(root *os.Root, src, dst string, e archive.Entry, content io.Reader) error {
	if d.caps != nil {
		if d.caps.entries--; d.caps.entries < 0 {
			return sandbox.Errorf("cp", sandbox.KindTooLarge, "too many files").WithID(src).WithHint("pack them into one inside the sandbox")
		}
	}
	why := archive.Obeyed(e.Path)
	if why == "" && e.Mode.Type() == fs.ModeSymlink {
		why = "it is a symlink"
	}
	switch {
	case why != "":
		d.skip(src, e.Path+": "+why)
		return nil
	case e.Mode.IsDir():
		return sandbox.Wrap("cp", e.Path, root.MkdirAll(filepath.FromSlash(e.Path), 0o777))
	}
	return d.store(dst, e.Path, func(w io.Writer) error {
		_, err := io.Copy(w, content)
		return err
	})
}
