package template

import (
	"errors"
	"io"
	"syscall"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Limits bound what an image or archive, which somebody else made, may have a
// build do. A zero field is that of DefaultLimits.
type Limits struct {
	Download int64 // bytes fetched, all layers together
	Bytes    int64 // bytes of the unpacked archives, holes of sparse files included
	Entries  int64 // files, directories and links, all layers together
	Layers   int
	Depth    int   // directories below each other
	Ratio    int64 // unpacked bytes per packed one, past ratioFree
}

// DefaultLimits are far beyond what images in use need.
var DefaultLimits = Limits{Download: 10 << 30, Bytes: 20 << 30, Entries: 2_000_000, Layers: 512, Depth: 128, Ratio: 200}

// ratioFree is how much may be unpacked before the ratio counts: a small file
// of zeros harms nobody.
const ratioFree = 64 << 20

func (l Limits) orDefault() Limits {
	d := DefaultLimits
	if l.Download <= 0 {
		l.Download = d.Download
	}
	if l.Bytes <= 0 {
		l.Bytes = d.Bytes
	}
	if l.Entries <= 0 {
		l.Entries = d.Entries
	}
	if l.Layers <= 0 {
		l.Layers = d.Layers
	}
	if l.Depth <= 0 {
		l.Depth = d.Depth
	}
	if l.Ratio <= 0 {
		l.Ratio = d.Ratio
	}
	return l
}

// opBuild is the operation all errors of a build name.
const opBuild = "template build"

// refuse is an error about what an image or archive holds.
func refuse(kind sandbox.Kind, format string, args ...any) *sandbox.Error {
	e := sandbox.Errorf(opBuild, kind, format, args...)
	switch kind {
	case sandbox.KindTooLarge:
		return e.WithHint("the limits of a build are there to keep one image from filling the machine; use a smaller image")
	case sandbox.KindDenied:
		return e.WithHint("no sound image holds this; do not use it")
	}
	return e.WithHint("the image or archive is broken; make it again")
}

// meter counts what passes and ends the stream where a limit is reached.
type meter struct {
	r    io.Reader
	n    int64
	over func(n int64) error // nil while n bytes are fine
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.over != nil {
		if e := m.over(m.n); e != nil {
			return 0, e
		}
	}
	return n, err
}

// noSpace gives errors of a full disk a hint.
func noSpace(err error) error {
	var e *sandbox.Error
	if err == nil || errors.As(err, &e) || !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return sandbox.Errorf(opBuild, sandbox.KindNoSpace, "%w", err).
		WithHint("make room in the data directory; `firebreak template gc` removes what nothing refers to")
}
