package gvisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// imageVersion is that of what this package writes, the state of an instance of its
// own included.
const imageVersion = 3

// image is one that has been checked, or is only known to those who wrote it.
type image struct {
	*snapimage.Image
	files []*os.File // as a sentry takes them
}

// close lets go of an image's files.
func (img *image) close() { closeAll(img.files) }

// again is the image's files, opened once more: a sentry moves where it reads.
func (img *image) again() (files []*os.File, err error) {
	for _, f := range img.files {
		g, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, g)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// buildsHere describes what this Backend makes instances of. The guest's memory holds
// pointers into the agent and knows what the processor can do; only the same build of
// the sentry can read what one has written. Cost: the programs are read, once.
func (b *Backend) buildsHere() ([]snapimage.Build, error) {
	ctx := context.Background()
	runsc, err := snapimage.Measure(ctx, b.cfg.Runsc)
	if err != nil {
		return nil, err
	}
	h := sha256.New() // of the agent and the language modules
	err = filepath.WalkDir(b.cfg.Runtime, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := snapimage.Measure(ctx, name)
		rel, _ := filepath.Rel(b.cfg.Runtime, name)
		fmt.Fprintf(h, "%s %s\n", f.SHA256, rel)
		return err
	})
	return []snapimage.Build{{What: "build of runsc", Is: runsc.SHA256}, {What: "build of the agent", Is: hex.EncodeToString(h.Sum(nil))},
		{What: "kind of processor", Is: snapimage.Processor()}}, err
}

// verify compares every byte of the image with its manifest, and leaves open what it
// has read.
func (img *image) verify(ctx context.Context) error {
	if img.Dir() == "" { // it never had names
		return nil
	}
	files, err := img.Verify(ctx)
	if err != nil {
		return err
	}
	for _, name := range imageNames {
		if f := files[name]; f != nil {
			img.files = append(img.files, f)
			delete(files, name)
		}
	}
	if len(files) == 0 && len(img.files) == len(imageNames) {
		return nil
	}
	img.close()
	for _, f := range files {
		f.Close()
	}
	return sandbox.Errorf("restore", sandbox.KindConflict, "the snapshot has other files than those of a sandbox").WithHint("take another snapshot")
}
