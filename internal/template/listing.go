package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// list describes everything below root in a canonical form, one line each,
// sorted by path:
//
//	type mode uid gid size content "path" "target"
//
// type is d, f or l; mode is octal permissions; content is the SHA-256 of a
// file, else "-". The digest of a pack is the SHA-256 of these lines: times,
// inodes and the order of directory entries do not enter.
//
// The owner counts as 0 when it is the owner of root itself, so that who among
// ordinary users built a pack does not matter. Any other kind of file is an
// error. It also returns the total size of file content.
func list(ctx context.Context, root string) (listing []byte, size int64, err error) {
	top, err := os.Lstat(root)
	if err != nil {
		return nil, 0, err
	}
	owner := ownerOf(top)
	type line struct{ path, text string }
	var lines []line
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || p == root {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		rel := filepath.ToSlash(p[len(root)+1:])
		typ, content, target, n := "", "-", "", int64(0)
		switch st.Mode().Type() {
		case 0:
			typ, n = "f", st.Size()
			content, err = hashFile(p, n)
		case fs.ModeDir:
			typ = "d"
		case fs.ModeSymlink:
			typ = "l"
			target, err = os.Readlink(p)
		default:
			err = fmt.Errorf("%s: %v does not belong in a template", rel, st.Mode())
		}
		if err != nil {
			return err
		}
		uid, gid := ownerOf(st).relativeTo(owner)
		size += n
		text := fmt.Sprintf("%s %04o %d %d %d %s %s %s\n", typ, unixMode(st.Mode()), uid, gid, n, content, strconv.Quote(rel), strconv.Quote(target))
		lines = append(lines, line{rel, text})
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.path, b.path) })
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l.text)
	}
	return b.Bytes(), size, nil
}

type ownership struct{ uid, gid uint32 }

func ownerOf(st fs.FileInfo) ownership {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return ownership{s.Uid, s.Gid}
	}
	return ownership{}
}

func (o ownership) relativeTo(root ownership) (uid, gid uint32) {
	if o.uid == root.uid {
		o.uid = 0
	}
	if o.gid == root.gid {
		o.gid = 0
	}
	return o.uid, o.gid
}

// unixMode is m's permission and setuid, setgid and sticky bits as in stat(2).
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		u |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		u |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		u |= 0o1000
	}
	return u
}

func hashFile(path string, size int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err == nil && n != size {
		err = fmt.Errorf("%s changed while it was read", path)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// firstDifference names the first path at which two listings differ.
func firstDifference(want, got []byte) string {
	w, g := strings.SplitAfter(string(want), "\n"), strings.SplitAfter(string(got), "\n")
	for i := 0; i < len(w) || i < len(g); i++ {
		a, b := at(w, i), at(g, i)
		if a == b {
			continue
		}
		pa, pb := pathOf(a), pathOf(b)
		switch {
		case pa == pb:
			return "/" + pa + " was changed"
		case pb == "" || pa != "" && pa < pb:
			return "/" + pa + " is missing"
		default:
			return "/" + pb + " was added"
		}
	}
	return "nothing"
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

// pathOf takes the path out of a line of a listing.
func pathOf(line string) string {
	fields := strings.SplitN(line, " ", 7)
	if len(fields) < 7 {
		return ""
	}
	quoted, err := strconv.QuotedPrefix(fields[6])
	if err != nil {
		return ""
	}
	p, err := strconv.Unquote(quoted)
	if err != nil {
		return ""
	}
	return path.Clean(p)
}
