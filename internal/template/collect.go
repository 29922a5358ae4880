package template

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// CollectOptions says what Collect may remove. The zero value removes all that
// nothing uses at this moment; DefaultCollect is what a server does by itself.
type CollectOptions struct {
	// Unused is how long ago a template that no name refers to, or a layout of
	// the host that is not current any more, must have been used last.
	Unused time.Duration
	// Age is how long ago a layer that no named template is made of must have
	// been used last, and Size what all layers together may take; 0 keeps none.
	Age  time.Duration
	Size int64
}

// DefaultCollect keeps an hour's templates and a week's layers.
var DefaultCollect = CollectOptions{Unused: time.Hour, Age: 7 * 24 * time.Hour, Size: 20 << 30}

// Collected is what Collect removed.
type Collected struct {
	Templates []string // digests
	Layers    int
	Bytes     int64 // of file content, templates and layers
}

// Collect removes templates no name refers to, layouts of the host that are not
// current any more, uploads nobody built from and layers beyond what o keeps.
//
// It never removes what is in use: a template some process holds (Acquire) or
// that an entry of Options.Instances names, a layer a build reads. It may run
// beside everything else, in several processes. After an error, what was removed
// so far is in the result.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (c Collected, err error) {
	const op = "template gc"
	err = s.dropUploads(time.Now().Add(-uploadLives))
	trash, e := s.detachUnused(ctx, o, &c)
	err = errors.Join(err, e)
	failpoint.Hit("template.collect/after-detach")
	for _, t := range trash {
		err = errors.Join(err, t.discard())
	}
	failpoint.Hit("template.collect/after-discard")
	if err == nil {
		err = s.collectLayers(ctx, o, &c)
	}
	return c, sandbox.Wrap(op, "", err)
}

// detachUnused moves aside what Collect removes of the templates.
func (s *Store) detachUnused(ctx context.Context, o CollectOptions, c *Collected) ([]*temporary, error) {
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	names, err := s.names()
	if err != nil {
		return nil, err // an unreadable name could refer to anything
	}
	keep, err := s.inUse()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		keep[n.digest] = true
	}
	host, hostErr := s.host.digest()
	keep[host] = true
	entries, err := readDirNames(s.dir)
	if err != nil {
		return nil, err
	}
	var trash []*temporary
	for _, e := range entries {
		if ctx.Err() != nil {
			return trash, ctx.Err()
		}
		if !reEntry.MatchString(e) || keep[entryDigest(e)] {
			continue
		}
		t, _ := s.load(entryDigest(e)) // a damaged one goes as well
		if t.Root.Mutable && hostErr != nil || time.Since(s.lastUsed(e)) < o.Unused {
			continue
		}
		old, err := s.detach(entryDigest(e))
		if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return trash, err
		}
		trash = append(trash, old)
		c.Templates = append(c.Templates, entryDigest(e))
		c.Bytes += t.Size
	}
	slices.Sort(c.Templates)
	return trash, nil
}

// lastUsed is when the template in this directory was acquired last, or lost
// its name, or was made.
func (s *Store) lastUsed(entry string) time.Time {
	st, err := os.Stat(filepath.Join(s.dir, entry, "lock"))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

var reMention = regexp.MustCompile(`sha256[-:]([0-9a-f]{64})`)

// maxRecord bounds what of an instance's files is read: descriptions are small,
// layers and logs are none.
const maxRecord = 1 << 20

// inUse returns the digests that instances name. A process that died has given
// up its leases, and its sandboxes live on.
func (s *Store) inUse() (map[string]bool, error) {
	used := map[string]bool{}
	for _, pattern := range s.opts.Instances {
		found, err := filepath.Glob(filepath.Join(pattern, "*"))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			st, err := os.Lstat(path)
			if err != nil || !st.Mode().IsRegular() || st.Size() > maxRecord {
				continue // gone meanwhile: so is its instance
			}
			b, err := readRecord(path)
			if err != nil {
				return nil, err
			}
			for _, m := range reMention.FindAllSubmatch(b, -1) {
				used["sha256:"+string(m[1])] = true
			}
		}
	}
	return used, nil
}

func readRecord(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRecord))
}

// cachedLayer is a file of the layer cache.
type cachedLayer struct {
	path string
	size int64
	used time.Time
	kept bool // a named template is made of it
}

// collectLayers removes layers: those nobody needs by age, then the oldest until
// the rest fits.
func (s *Store) collectLayers(ctx context.Context, o CollectOptions, c *Collected) error {
	layers, err := s.cachedLayers()
	if err != nil {
		return err
	}
	slices.SortFunc(layers, func(a, b cachedLayer) int {
		if a.kept != b.kept { // what is needed goes last
			if b.kept {
				return -1
			}
			return 1
		}
		return a.used.Compare(b.used)
	})
	var total int64
	for _, l := range layers {
		total += l.size
	}
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		if total <= o.Size && (l.kept || time.Since(l.used) < o.Age) {
			continue
		}
		gone, err := removeUnlocked(l.path)
		if err != nil {
			return err
		}
		if gone {
			total -= l.size
			c.Layers++
			c.Bytes += l.size
		}
	}
	return nil
}

func (s *Store) cachedLayers() ([]cachedLayer, error) {
	dir := filepath.Join(s.dir, "blobs")
	files, err := readDirNames(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	needed := map[string]bool{}
	for _, n := range names {
		if t, err := s.load(n.digest); err == nil && t.Source != nil {
			for _, l := range t.Source.Layers {
				needed[l] = true
			}
		}
	}
	var list []cachedLayer
	for _, f := range files {
		if !reEntry.MatchString(f) {
			continue
		}
		st, err := os.Lstat(filepath.Join(dir, f))
		if err != nil { // removed just now
			continue
		}
		list = append(list, cachedLayer{filepath.Join(dir, f), st.Size(), st.ModTime(), needed[entryDigest(f)]})
	}
	return list, nil
}

// removeUnlocked removes a file unless somebody holds a lock on it.
func removeUnlocked(path string) (bool, error) {
	f, err := tryLock(path, exclusive)
	if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if !sameFile(f, path) {
		return false, nil
	}
	return true, os.Remove(path)
}
