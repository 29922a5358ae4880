package orchestrator

import (
	"io"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestDialPort: a connection to a server inside is on record before it is made,
// keeps its sandbox from being idle, belongs to its tenant, and ends with the
// sandbox.
func TestDialPort(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		minute := time.Minute
		sb := mustCreate(w.t, o, alice, CreateRequest{IdleTimeout: &minute})
		c, err := o.DialPort(w.t.Context(), alice, string(sb.ID), 7) // the model's echo
		if err != nil {
			w.t.Fatal(err)
		}
		sleep(10 * time.Minute)
		if _, err := c.Write([]byte("hello")); err != nil {
			w.t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			w.t.Fatalf("%q, %v", b, err)
		}
		for port, kind := range map[int]sandbox.Kind{0: sandbox.KindInvalid, 70000: sandbox.KindInvalid, 8: sandbox.KindNotFound} {
			if _, err := o.DialPort(w.t.Context(), alice, string(sb.ID), port); sandbox.KindOf(err) != kind {
				w.t.Errorf("port %d: %v", port, err)
			}
		}
		if _, err := o.DialPort(w.t.Context(), bob, string(sb.ID), 7); sandbox.KindOf(err) != sandbox.KindNotFound {
			w.t.Errorf("a stranger: %v", err)
		}
		w.audit.set(sandbox.Errorf("record", sandbox.KindNoSpace, "full"))
		if _, err := o.DialPort(w.t.Context(), alice, string(sb.ID), 7); sandbox.KindOf(err) != sandbox.KindNoSpace {
			w.t.Errorf("without evidence: %v", err)
		}
		w.audit.set(nil)
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
		if c, err = o.DialPort(w.t.Context(), alice, string(sb.ID), 7); err != nil {
			w.t.Fatal(err)
		}
		if _, err := o.Destroy(w.t.Context(), alice, string(sb.ID)); err != nil {
			w.t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err == nil {
			w.t.Error("the connection outlived its sandbox")
		}
		opened := 0
		for _, a := range w.audit.actions(sb.ID) {
			if a == "port.open allowed" {
				opened++
			}
		}
		if opened != 3 { // two that were made, one where nothing listened
			w.t.Errorf("%d on record", opened)
		}
	})
}
