package store

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// pages collects a whole list, and does between after each page.
func pages(t interface{ Fatal(...any) }, tn *Tenant, f Filter, size int, between func()) []sandbox.ID {
	var ids []sandbox.ID
	p := Page{Size: size}
	for {
		list, next, err := tn.ListSandboxes(context.Background(), f, p)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > size || (next != "" && len(list) != size) {
			t.Fatal("a page has", len(list), "rows of", size)
		}
		for _, sb := range list {
			ids = append(ids, sb.ID)
		}
		if next == "" {
			return ids
		}
		between()
		p.Token = next
	}
}

// The store and a plain slice agree on every list, whatever the rows, filters
// and page sizes, also while rows are added between the pages.
func TestListAgainstModel(t *testing.T) {
	s := openTemp(t)
	ctx := context.Background()
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		tn := s.Tenant(sandbox.TenantID(fmt.Sprint("t", run)))
		var model []Sandbox
		add := func(at time.Time) {
			sb := Sandbox{
				ID: sandbox.NewID(), State: rapid.SampledFrom(stateOrder).Draw(t, "state"), Created: at,
				Metadata: map[string]string{},
			}
			for _, k := range []string{"a", "b"} {
				if v := rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, k); v != "" {
					sb.Metadata[k] = v
				}
			}
			sb, err := tn.CreateSandbox(ctx, sb, Quota{})
			if err != nil {
				t.Fatal(err)
			}
			model = append(model, sb)
		}
		base := time.Unix(1e9, 0)
		for range rapid.IntRange(0, 12).Draw(t, "rows") {
			// Few distinct times, so that ties are common.
			add(base.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "at"))))
		}
		if len(model) > 0 && rapid.Bool().Draw(t, "edit") {
			i := rapid.IntRange(0, len(model)-1).Draw(t, "which")
			sb, err := tn.EditSandbox(ctx, model[i].ID, func(sb *Sandbox) error {
				sb.Metadata = map[string]string{"a": "2"}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			model[i] = sb
		}
		f := Filter{}
		f.States = rapid.SliceOfNDistinct(rapid.SampledFrom(stateOrder), 0, 3, rapid.ID[State]).Draw(t, "states")
		if rapid.Bool().Draw(t, "tagged") {
			f.Metadata = map[string]string{"a": rapid.SampledFrom([]string{"1", "2"}).Draw(t, "want a")}
			if rapid.Bool().Draw(t, "twice") {
				f.Metadata["b"] = "1"
			}
		}
		var want []sandbox.ID
		sorted := slices.Clone(model)
		slices.SortFunc(sorted, func(a, b Sandbox) int {
			return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(b.ID, a.ID))
		})
		for _, sb := range sorted {
			ok := len(f.States) == 0 || slices.Contains(f.States, sb.State)
			for k, v := range f.Metadata {
				ok = ok && sb.Metadata[k] == v
			}
			if ok {
				want = append(want, sb.ID)
			}
		}
		got := pages(t, tn, f, rapid.IntRange(1, 5).Draw(t, "size"), func() { add(base.Add(time.Hour)) })
		if !slices.Equal(got, want) {
			t.Fatalf("filter %+v\n got %v\nwant %v", f, got, want)
		}
	})
}

func TestPageTokens(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	for range 3 {
		mustCreate(t, tn, Sandbox{})
		if _, err := tn.CreateRun(ctx, Run{ID: sandbox.NewRunID()}); err != nil {
			t.Fatal(err)
		}
		mustCreate(t, s.Tenant("other"), Sandbox{})
	}
	_, tok, err := tn.ListSandboxes(ctx, Filter{}, Page{Size: 1})
	if err != nil || tok == "" {
		t.Fatal(tok, err)
	}
	_, runTok, err := tn.ListRuns(ctx, Page{Size: 2})
	if err != nil || runTok == "" {
		t.Fatal(runTok, err)
	}
	if l, next, err := tn.ListRuns(ctx, Page{Token: runTok}); err != nil || len(l) != 1 || next != "" {
		t.Fatal(l, next, err)
	}
	for name, try := range map[string]func() error{
		"garbage":      func() error { _, _, err := tn.ListSandboxes(ctx, Filter{}, Page{Token: "%%"}); return err },
		"other filter": func() error { _, _, err := tn.ListSandboxes(ctx, Filter{Name: "x"}, Page{Token: tok}); return err },
		"other tenant": func() error {
			_, _, err := s.Tenant("other").ListSandboxes(ctx, Filter{}, Page{Token: tok})
			return err
		},
		"other list":      func() error { _, _, err := tn.ListSandboxes(ctx, Filter{}, Page{Token: runTok}); return err },
		"negative size":   func() error { _, _, err := tn.ListSandboxes(ctx, Filter{}, Page{Size: -1}); return err },
		"unknown state":   func() error { _, _, err := tn.ListSandboxes(ctx, Filter{States: []State{"x"}}, Page{}); return err },
		"runs, garbage":   func() error { _, _, err := tn.ListRuns(ctx, Page{Token: "e30"}); return err },
		"runs, sandboxes": func() error { _, _, err := tn.ListRuns(ctx, Page{Token: tok}); return err },
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, try(), sandbox.KindInvalid) })
	}
	if l, _, err := tn.ListSandboxes(ctx, Filter{}, Page{Size: 1 << 30}); err != nil || len(l) != 3 {
		t.Fatal(len(l), err)
	}
	if l, _, err := tn.ListSandboxes(ctx, Filter{Metadata: maps.Clone(map[string]string{"no": "such"})}, Page{}); err != nil || len(l) != 0 {
		t.Fatal(len(l), err)
	}
}
