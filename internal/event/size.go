package event

import (
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Size is how many bytes the events of id take on disk. It costs three stats.
func (h *Hub) Size(id sandbox.ID) (n int64) {
	for _, suffix := range []string{eventSuffix, outSuffix, oldSuffix} {
		if fi, err := os.Stat(filepath.Join(h.dir, string(id)+suffix)); err == nil {
			n += fi.Size()
		}
	}
	return n
}

// Retain is how long the events of an ended sandbox are kept.
func (h *Hub) Retain() time.Duration { return h.o.Retain }
