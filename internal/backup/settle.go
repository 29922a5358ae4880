package backup

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// settle makes an extracted directory fit for a server: it checks what a digest
// cannot, migrates, and ends what did not come along. It returns how many
// sandboxes that were, and how many secrets there are without their key.
func settle(ctx context.Context, dir string, m Manifest, t Target) (lost, sealed int, err error) {
	if err := verify(ctx, dir, m); err != nil {
		return 0, 0, err
	}
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(ctx, filepath.Join(dir, stateName), log)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if e := st.Close(); err == nil {
			err = e
		}
	}()
	failpoint.Hit("restore/migrated")
	if sealed, err = st.System().SealedSecrets(ctx); err != nil {
		return 0, 0, err
	}
	record, err := audit.Open(filepath.Join(dir, "audit", "server"), audit.Options{}, log)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if e := record.Close(); err == nil {
			err = e
		}
	}()
	// Nothing is too old here: the server decides that.
	events, err := event.Open(filepath.Join(dir, "events"), event.Options{Retain: math.MaxInt64}, log)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		if e := events.Close(); err == nil {
			err = e
		}
	}()
	live, err := st.System().LiveSandboxes(ctx)
	if err != nil {
		return 0, 0, err
	}
	made := m.Created.Format(time.RFC3339)
	if _, err := record.Record(ctx, sandbox.Record{
		Class: sandbox.Gate, Tenant: sandbox.DefaultTenant, Principal: t.Principal, Action: "backup.restore", Outcome: sandbox.OutcomeDone,
		Digest: m.Audit["server"].Hash,
		Detail: map[string]string{"made": made, "live": strconv.Itoa(len(live))},
	}); err != nil {
		return 0, 0, err
	}
	detail := "it was alive when the backup of " + made + " was made, which this server was restored from"
	for _, sb := range live {
		err := end(ctx, st, record, sb, t.Principal, detail)
		if err == nil {
			err = tell(events, sb.ID, detail)
		}
		if err != nil {
			return 0, 0, err
		}
		failpoint.Hit("restore/after-end")
	}
	return len(live), sealed, nil
}

// end records that a sandbox is not here. There is no receipt: nothing was torn
// down, and where it came from it may go on living.
func end(ctx context.Context, st *store.Store, record *audit.Log, sb store.Sandbox, who, detail string) error {
	if _, err := record.Record(ctx, sandbox.Record{
		Class: sandbox.Gate, Tenant: sb.Tenant, Principal: who, Sandbox: sb.ID, Instance: sb.Instance,
		Action: "sandbox.lost", Outcome: sandbox.OutcomeDone, Reason: sandbox.ReasonLost, Detail: map[string]string{"detail": detail},
	}); err != nil {
		return err
	}
	_, err := st.Tenant(sb.Tenant).EditSandbox(ctx, sb.ID, func(sb *store.Sandbox) error {
		sb.State, sb.Reason, sb.Detail = store.Ended, sandbox.ReasonLost, detail
		return nil
	})
	return err
}

// tell ends the sandbox's events, for whoever follows them. They may have ended
// already: they were copied after the state.
func tell(events *event.Hub, id sandbox.ID, detail string) error {
	b, err := json.Marshal(map[string]string{"state": string(store.Ended), "reason": string(sandbox.ReasonLost), "detail": detail})
	if err == nil {
		_, err = events.Publish(id, event.Event{Type: event.StateChange, Data: b, Final: true})
	}
	if sandbox.KindOf(err) == sandbox.KindGone {
		return nil
	}
	return err
}

// verify reads the database and every audit log as a whole.
func verify(ctx context.Context, dir string, m Manifest) error {
	schema, err := store.Check(ctx, filepath.Join(dir, stateName))
	if sandbox.KindOf(err) == sandbox.KindUnsupported {
		return err
	}
	if err != nil {
		return invalid("the database: %w", err)
	}
	if schema != m.Schema {
		return invalid("the database has schema %d, not %d", schema, m.Schema)
	}
	logs, err := os.ReadDir(filepath.Join(dir, "audit"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	logs = slices.DeleteFunc(logs, func(l os.DirEntry) bool { return !l.IsDir() }) // keys
	if len(logs) != len(m.Audit) {
		return invalid("it has %d audit logs and says %d", len(logs), len(m.Audit))
	}
	for _, l := range logs {
		head, err := audit.Verify(filepath.Join(dir, "audit", l.Name()))
		if err != nil {
			return invalid("%w", err)
		}
		if headOf(head) != m.Audit[l.Name()] {
			return invalid("the audit log %s ends at %d", l.Name(), head.Position)
		}
	}
	return nil
}
