package cli

import (
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/gitsource"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// gitNetwork is how --git reaches servers, with progress on a terminal. end takes
// that away.
func (a *App) gitNetwork() (n *gitsource.Network, end func(), err error) {
	c, err := a.config()
	if err != nil {
		return nil, nil, err
	}
	p := &progressLine{app: a, on: terminal(a.Err)}
	var next time.Time
	return &gitsource.Network{Private: c.GitPrivate, Progress: func(received int64) {
		if now := time.Now(); now.After(next) {
			next = now.Add(100 * time.Millisecond)
			p.show(&v1.BuildProgress{Stage: "fetch", Percent: -1, Text: sandbox.FormatSize(received)})
		}
	}}, p.end, nil
}
