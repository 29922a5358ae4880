// Package image takes a running sandbox's memory, all of it, and searches it: what a
// test does that says something was never in there.
//
//	err := image.Take(ctx, data, instance, dir) // the sandbox goes on
//	found, size, err := image.Search(dir, []byte("canary"), []byte("secret"))
//	found[0] > 0                                // the search is not blind
//	found[1] == 0                               // and the secret is not in it
//
// It does not use Firebreak's snapshots, so it works also where those are refused.
package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// Take has the sandbox whose boundary is called instance, of a server with that data
// directory, write its memory, uncompressed, and its files and state into dir, which
// must not exist. It needs to be root.
func Take(ctx context.Context, data, instance, dir string) error {
	programs, err := filepath.Glob(filepath.Join(data, "libexec", "*", "runsc"))
	if err != nil || len(programs) != 1 {
		return fmt.Errorf("runsc in %s: %q, %v", data, programs, err)
	}
	if dir, err = filepath.Abs(dir); err == nil {
		err = os.Mkdir(dir, 0o700)
	}
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, programs[0], "--root=runsc", "--platform=systrap", "checkpoint", "-leave-running", "-compression=none", "-image-path="+dir, instance)
	cmd.Args[0] = "runsc"
	cmd.Dir = filepath.Join(data, "instances", instance)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Search counts each needle in all files of dir, and how many bytes those have.
// Overlapping occurrences count once; a needle has at most 64 KiB.
func Search(dir string, needles ...[]byte) (found []int, size int64, err error) {
	found = make([]int, len(needles))
	files, err := os.ReadDir(dir)
	if err != nil {
		return found, 0, err
	}
	for _, f := range files {
		n, err := searchFile(filepath.Join(dir, f.Name()), needles, found)
		if size += n; err != nil {
			return found, size, err
		}
	}
	return found, size, nil
}

// maxNeedle is how long a needle may be.
const maxNeedle = 64 << 10

func searchFile(name string, needles [][]byte, found []int) (size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 4<<20)
	carry := make([]int, len(needles)) // bytes from the end of buf that a needle may begin in
	for kept := 0; ; {
		n, err := io.ReadFull(f, buf[kept:])
		size += int64(n)
		seen, last := buf[:kept+n], 0
		for i, needle := range needles {
			if len(needle) == 0 || len(needle) > maxNeedle {
				return size, fmt.Errorf("a needle of %d bytes", len(needle))
			}
			rest := seen[kept-carry[i]:]
			for at := bytes.Index(rest, needle); at >= 0; at = bytes.Index(rest, needle) {
				found[i]++
				rest = rest[at+len(needle):]
			}
			carry[i] = min(len(rest), len(needle)-1)
			last = max(last, carry[i])
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		kept = copy(buf, seen[len(seen)-last:])
	}
}
