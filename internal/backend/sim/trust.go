package sim

import (
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var _ agent.Truster = system{}

// Trust implements agent.Truster: a model has no list of its own, and so the two
// files.
func (s system) Trust(c guest.TrustCall) error {
	dir := guest.TrustDir(c.ReadOnly)
	if err := s.m.fs.MkdirAll(rootCred, dir, 0o755); err != nil {
		return sandbox.Wrap("trust", "", err)
	}
	for _, name := range []string{guest.TrustFile, guest.TrustBundle} {
		if err := s.m.fs.WriteFile(rootCred, dir+"/"+name, []byte(c.Certificate), 0o644); err != nil {
			return sandbox.Wrap("trust", "", err)
		}
	}
	return nil
}
