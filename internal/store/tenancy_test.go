package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Every method of Tenant, called by a tenant with the ids of another one's
// rows, answers exactly as for ids that exist nowhere, and changes nothing. A
// new method fails this test until it has a case here.
func TestCrossTenantDenial(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	owner, thief := s.Tenant("owner"), s.Tenant("thief")
	in := full()
	sb := mustCreate(t, owner, in)
	run, err := owner.CreateRun(ctx, Run{ID: sandbox.NewRunID(), Sandbox: sb.ID})
	if err != nil {
		t.Fatal(err)
	}
	key, err := owner.CreateKey(ctx, Key{ID: "k1", Name: "n", Hash: [32]byte{1}, Role: "owner"})
	if err != nil {
		t.Fatal(err)
	}
	pol, err := owner.SetPolicy(ctx, Policy{Name: "build", Text: "allow: []"}, NoDigest)
	if err != nil {
		t.Fatal(err)
	}
	sec, err := owner.SetSecret(ctx, Secret{Name: "token", Sealed: "sealed"})
	if err != nil {
		t.Fatal(err)
	}
	bind, err := owner.SetBinding(ctx, Binding{Name: "api", Secret: "token", Body: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	snap, err := owner.AddSnapshot(ctx, SavedSandbox{ID: sandbox.NewSnapshotID(), Name: "warm", Sandbox: sb.ID, Body: []byte("{}")}, false)
	if err != nil {
		t.Fatal(err)
	}
	res, err := owner.Reserve(ctx, Request{Key: "idem", Result: string(sb.ID)})
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Complete(ctx); err != nil {
		t.Fatal(err)
	}

	// ids names the rows a case is tried with: the owner's, then nobody's.
	type ids struct {
		sb  sandbox.ID
		run sandbox.RunID
		key string
		pol string
		sec string
		bnd string
		snp string
	}
	empty := func(n int, err error) error {
		if err == nil && n != 0 {
			return errors.New("it sees rows")
		}
		return err
	}
	cases := map[string]func(tn *Tenant, x ids) error{
		"ID": func(tn *Tenant, x ids) error {
			if tn.ID() == owner.ID() {
				return errors.New("it is the owner")
			}
			return nil
		},
		"Sandbox": func(tn *Tenant, x ids) error { _, err := tn.Sandbox(ctx, x.sb); return err },
		"SandboxByName": func(tn *Tenant, x ids) error {
			_, err := tn.SandboxByName(ctx, in.Name)
			return err
		},
		"ListSandboxes": func(tn *Tenant, x ids) error {
			l, _, err := tn.ListSandboxes(ctx, Filter{Metadata: in.Metadata}, Page{})
			return empty(len(l), err)
		},
		"CountSandboxes": func(tn *Tenant, x ids) error { return empty(tn.CountSandboxes(ctx)) },
		"UpdateSandbox": func(tn *Tenant, x ids) error {
			sb := sb
			sb.ID, sb.Detail = x.sb, "stolen"
			_, err := tn.UpdateSandbox(ctx, sb)
			return err
		},
		"EditSandbox": func(tn *Tenant, x ids) error {
			_, err := tn.EditSandbox(ctx, x.sb, func(sb *Sandbox) error { sb.Detail = "stolen"; return nil })
			return err
		},
		// Taking over an id is no way in: it makes the thief's own row.
		"CreateSandbox": func(tn *Tenant, x ids) error {
			tn = s.Tenant(tn.ID() + "-create") // leaves the thief empty for the other cases
			got, err := tn.CreateSandbox(ctx, Sandbox{ID: x.sb, Tenant: owner.ID()}, Quota{Tenant: 1})
			if err == nil && (got.Tenant != tn.ID() || got.Name != "") {
				return errors.New("it got the owner's row")
			}
			if n, _ := tn.CountSandboxes(ctx); err == nil && n != 1 {
				return errors.New("its own row is missing")
			}
			if err == nil {
				_, err = tn.EditSandbox(ctx, x.sb, func(sb *Sandbox) error { sb.State = Ended; return nil })
			}
			if _, perr := s.writer.conn.ExecContext(ctx, `DELETE FROM sandboxes WHERE tenant = ?`, string(tn.ID())); perr != nil {
				return perr
			}
			return err
		},
		"CreateBeside": func(tn *Tenant, x ids) error {
			tn = s.Tenant(tn.ID() + "-create") // leaves the thief empty for the other cases
			got, err := tn.CreateBeside(ctx, Sandbox{ID: x.sb, Tenant: owner.ID()}, Quota{Tenant: 1}, func() {})
			if err == nil && (got.Tenant != tn.ID() || got.Name != "") {
				return errors.New("it got the owner's row")
			}
			if n, _ := tn.CountSandboxes(ctx); err == nil && n != 1 {
				return errors.New("its own row is missing")
			}
			if err == nil {
				_, err = tn.EditSandbox(ctx, x.sb, func(sb *Sandbox) error { sb.State = Ended; return nil })
			}
			if _, perr := s.writer.conn.ExecContext(ctx, `DELETE FROM sandboxes WHERE tenant = ?`, string(tn.ID())); perr != nil {
				return perr
			}
			return err
		},
		"Run": func(tn *Tenant, x ids) error { _, err := tn.Run(ctx, x.run); return err },
		"EditRun": func(tn *Tenant, x ids) error {
			_, err := tn.EditRun(ctx, x.run, func(r *Run) error { r.Detail = "stolen"; return nil })
			return err
		},
		"ListRuns": func(tn *Tenant, x ids) error { l, _, err := tn.ListRuns(ctx, Page{}); return empty(len(l), err) },
		"CreateRun": func(tn *Tenant, x ids) error {
			tn = s.Tenant(tn.ID() + "-create")
			got, err := tn.CreateRun(ctx, Run{ID: x.run, Tenant: owner.ID()})
			if err == nil && got.Tenant != tn.ID() {
				return errors.New("it got the owner's row")
			}
			return err
		},
		"Reserve": func(tn *Tenant, x ids) error {
			r, err := tn.Reserve(ctx, Request{Key: "idem", Hash: [32]byte{9}, Result: "mine"})
			if err == nil && (r.Done() || r.Result() != "mine" || r.Abandoned() != "") {
				return errors.New("it got the owner's result")
			}
			if err == nil {
				err = r.Release(ctx)
			}
			return err
		},
		"Key":      func(tn *Tenant, x ids) error { _, err := tn.Key(ctx, x.key); return err },
		"ListKeys": func(tn *Tenant, x ids) error { l, err := tn.ListKeys(ctx); return empty(len(l), err) },
		"RevokeKey": func(tn *Tenant, x ids) error {
			_, err := tn.RevokeKey(ctx, x.key)
			return err
		},
		"TouchKey":     func(tn *Tenant, x ids) error { return tn.TouchKey(ctx, x.key, now()) },
		"Policy":       func(tn *Tenant, x ids) error { _, err := tn.Policy(ctx, x.pol); return err },
		"ListPolicies": func(tn *Tenant, x ids) error { l, err := tn.ListPolicies(ctx); return empty(len(l), err) },
		"RemovePolicy": func(tn *Tenant, x ids) error { _, err := tn.RemovePolicy(ctx, x.pol); return err },
		// A name is each tenant's own.
		"SetPolicy": func(tn *Tenant, x ids) error {
			tn = s.Tenant(tn.ID() + "-set")
			got, err := tn.SetPolicy(ctx, Policy{Name: x.pol, Text: "deny: []"}, NoDigest)
			if err == nil && got.Version != 1 {
				return errors.New("it got the owner's row")
			}
			return err
		},
		"Secret":        func(tn *Tenant, x ids) error { _, err := tn.Secret(ctx, x.sec); return err },
		"ListSecrets":   func(tn *Tenant, x ids) error { l, err := tn.ListSecrets(ctx); return empty(len(l), err) },
		"RemoveSecret":  func(tn *Tenant, x ids) error { _, err := tn.RemoveSecret(ctx, x.sec); return err },
		"Binding":       func(tn *Tenant, x ids) error { _, err := tn.Binding(ctx, x.bnd); return err },
		"ListBindings":  func(tn *Tenant, x ids) error { l, err := tn.ListBindings(ctx); return empty(len(l), err) },
		"RemoveBinding": func(tn *Tenant, x ids) error { _, err := tn.RemoveBinding(ctx, x.bnd); return err },
		"SetSecret": func(tn *Tenant, x ids) error {
			tn = s.Tenant(tn.ID() + "-set")
			got, err := tn.SetSecret(ctx, Secret{Name: x.sec, Sealed: "mine"})
			if err == nil && got.Version != 1 {
				return errors.New("it got the owner's row")
			}
			return err
		},
		"Snapshot":       func(tn *Tenant, x ids) error { _, err := tn.Snapshot(ctx, x.snp); return err },
		"ListSnapshots":  func(tn *Tenant, x ids) error { l, err := tn.ListSnapshots(ctx); return empty(len(l), err) },
		"RemoveSnapshot": func(tn *Tenant, x ids) error { _, err := tn.RemoveSnapshot(ctx, sandbox.SnapshotID(x.snp)); return err },
		"AddSnapshot": func(tn *Tenant, x ids) error {
			tn = s.Tenant(tn.ID() + "-set")
			_, err := tn.AddSnapshot(ctx, SavedSandbox{ID: sandbox.SnapshotID(x.snp), Name: snap.Name, Body: []byte("{}")}, false)
			if err == nil {
				_, err = tn.RemoveSnapshot(ctx, sandbox.SnapshotID(x.snp))
			}
			return err
		},
		// A binding is of a secret of its own tenant: another's is not there.
		"SetBinding": func(tn *Tenant, x ids) error {
			_, err := tn.SetBinding(ctx, Binding{Name: "b", Secret: x.sec, Body: []byte("{}")})
			var e *sandbox.Error
			if errors.As(err, &e) && e.Kind == sandbox.KindNotFound {
				return nil
			}
			return fmt.Errorf("a binding of another's secret: %w", err)
		},
		// Key ids are drawn at random by auth and are unique over all tenants,
		// because a caller is looked up by key before its tenant is known. So
		// an id in use is refused, which says nothing about whose it is.
		"CreateKey": func(tn *Tenant, x ids) error {
			_, err := tn.CreateKey(ctx, Key{ID: key.ID, Hash: [32]byte{2}, Role: "owner"})
			wantKind(t, err, sandbox.KindExists)
			return nil
		},
	}
	theirs := ids{sb.ID, run.ID, key.ID, pol.Name, sec.Name, bind.Name, string(snap.ID)}
	nobodys := ids{sandbox.NewID(), sandbox.NewRunID(), "k9", "nobodys", "nobodys", "nobodys", string(sandbox.NewSnapshotID())}
	typ := reflect.TypeFor[*Tenant]()
	for i := range typ.NumMethod() {
		name := typ.Method(i).Name
		c := cases[name]
		if c == nil {
			t.Errorf("Tenant.%s has no case", name)
			continue
		}
		delete(cases, name)
		t.Run(name, func(t *testing.T) {
			got, want := c(thief, theirs), c(thief, nobodys)
			if got == nil && want == nil {
				return
			}
			var g, w *sandbox.Error
			if !errors.As(got, &g) || !errors.As(want, &w) || g.Kind != sandbox.KindNotFound ||
				g.Kind != w.Kind || g.Op != w.Op || g.Hint != w.Hint || g.Message() != w.Message() {
				t.Errorf("theirs: %#v\nnobody's: %#v", got, want)
			}
		})
	}
	for name := range cases {
		t.Errorf("case %s names no method", name)
	}

	if now, err := owner.Sandbox(ctx, sb.ID); err != nil || !reflect.DeepEqual(now, sb) {
		t.Errorf("the owner's sandbox changed: %+v, %v", now, err)
	}
	if now, err := owner.Run(ctx, run.ID); err != nil || !reflect.DeepEqual(now, run) {
		t.Errorf("the owner's run changed: %+v, %v", now, err)
	}
	if now, err := owner.Policy(ctx, pol.Name); err != nil || !reflect.DeepEqual(now, pol) {
		t.Errorf("the owner's policy changed: %+v, %v", now, err)
	}
	if now, err := owner.Secret(ctx, sec.Name); err != nil || now != sec {
		t.Errorf("the owner's secret changed: %+v, %v", now, err)
	}
	if now, err := owner.Binding(ctx, bind.Name); err != nil || !reflect.DeepEqual(now, bind) {
		t.Errorf("the owner's binding changed: %+v, %v", now, err)
	}
	if now, err := owner.Snapshot(ctx, "warm"); err != nil || !reflect.DeepEqual(now, snap) {
		t.Errorf("the owner's snapshot changed: %+v, %v", now, err)
	}
	if now, err := owner.Key(ctx, key.ID); err != nil || !reflect.DeepEqual(now, key) {
		t.Errorf("the owner's key changed: %+v, %v", now, err)
	}
}
