package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/gitsource"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// A sandbox of a shell's own is a lease that the shell renews: should it be killed
// with SIGKILL, nobody is left to remove the sandbox.
const (
	lease   = 4 * time.Minute
	renewal = time.Minute
)

// ownShell runs a shell's program in a sandbox of its own, which ends with it.
func (a *App) ownShell(cmd *cobra.Command, f *shellFlags, program client.Command, l loan) error {
	l.whole = true
	return a.prepare(cmd, &f.createFlags, true, func(s *session, o client.CreateOptions, tree *gitsource.Tree) (err error) {
		ctx := cmd.Context()
		end := time.Time{} // of --timeout
		if o.Timeout > 0 {
			end = time.Now().Add(o.Timeout)
		}
		o.Timeout = leased(end)
		sb, err := a.create(ctx, s, o, tree)
		if err != nil {
			return err
		}
		defer func() {
			if rerr := remove(ctx, sb); rerr != nil {
				err = errors.Join(err, rerr)
			}
		}()
		if l.con != nil {
			a.say("sandbox %s, for this shell only", sb.ID())
		}
		renewing, cancel := context.WithCancel(ctx)
		renewed := make(chan struct{})
		go func() { defer close(renewed); renew(renewing, sb, end) }()
		defer func() { cancel(); <-renewed }()
		return a.shellIn(ctx, sb, program, f.tag, l)
	})
}

// leased is how long a sandbox may live from now that is to end at end, or never
// if that is zero.
func leased(end time.Time) time.Duration {
	if end.IsZero() {
		return lease
	}
	return min(lease, time.Until(end))
}

// renew renews the lease until ctx ends, or the sandbox.
func renew(ctx context.Context, sb *client.Sandbox, end time.Time) {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d := leased(end)
		if d <= 0 {
			return // it ends by itself
		}
		_, err := sb.SetTimeout(ctx, d, true) // a server that is away is asked again
		if k := sandbox.KindOf(err); k == sandbox.KindGone || k == sandbox.KindNotFound {
			return
		}
	}
}
