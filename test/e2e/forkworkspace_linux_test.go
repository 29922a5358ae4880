package e2e

import (
	"bytes"
	"context"
	"testing"
	"time"

	sdk "github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestForkWorkspace is a planning loop: one point, several ways on from it, each by an
// id or a name, and the first is none the wiser.
func TestForkWorkspace(t *testing.T) {
	enforcing(t)
	s := newWorld(t).serve()
	c := s.connect()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	ws, err := c.Create(ctx, sdk.CreateOptions{Name: "my-agent"})
	if err != nil {
		t.Fatal(err)
	}
	run := func(sb *sdk.Sandbox, script string) string {
		t.Helper()
		var out bytes.Buffer
		if exit, err := sb.Exec(ctx, sdk.Command{Path: "sh", Args: []string{"-c", script}}, &out, &out); err != nil || exit.Code != 0 {
			t.Fatalf("%s: %+v, %v, %s", script, exit, err, out.String())
		}
		return out.String()
	}
	run(ws, "echo start > plan")
	snap, err := c.Snapshot(ctx, "my-agent")
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{ws.ID(): true}
	for _, name := range []string{"plan-a", "plan-b", ""} {
		fork, err := c.ForkWorkspace(ctx, snap.GetId(), name)
		if err != nil {
			t.Fatal(err)
		}
		if ids[fork.ID()] || fork.Created().GetName() != name || fork.Created().GetSnapshot() != snap.GetId() {
			t.Errorf("%+v", fork.Created())
		}
		ids[fork.ID()] = true
		if got := run(fork, "cat plan; echo "+name+" >> plan; wc -l < plan"); got != "start\n2\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got := run(c.Sandbox("plan-b"), "cat plan"); got != "start\nplan-b\n" {
		t.Errorf("plan-b has %q", got)
	}
	if got := run(ws, "cat plan"); got != "start\n" {
		t.Errorf("the first has %q", got)
	}
	if _, err := c.ForkWorkspace(ctx, snap.GetId(), "plan-b"); sandbox.KindOf(err) != sandbox.KindExists {
		t.Errorf("a name twice: %v", err)
	}
	if _, err := c.ForkWorkspace(ctx, "sn234567abcdefghijkl", ""); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("of no snapshot: %v", err)
	}
	if err := c.RemoveSnapshot(ctx, snap.GetId()); err != nil {
		t.Error(err)
	}

	// Kept for a time while paused, and given one when it goes on.
	info, err := ws.PauseFor(ctx, sdk.Never)
	if err != nil || info.GetState() != "paused" || info.GetExpiresAt() != nil {
		t.Errorf("%+v, %v", info, err)
	}
	info, err = ws.ResumeFor(ctx, time.Hour)
	if left := time.Until(info.GetExpiresAt().AsTime()); err != nil || info.GetState() != "running" || left > time.Hour || left < 50*time.Minute {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := ws.PauseFor(ctx, time.Second); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if info, err = ws.Info(ctx); err != nil {
			t.Fatal(err)
		} else if info.GetState() == "ended" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("it is kept for ever: %+v", info)
		}
	}
	if info.GetReason() != "timeout" || !info.GetReceipt().GetClean() {
		t.Errorf("%+v", info)
	}
}
