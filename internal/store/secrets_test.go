package store

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestSecrets(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	first, err := tn.SetSecret(ctx, Secret{Name: "openai", Sealed: "one", Principal: "k1"})
	if err != nil || first.Version != 1 || first.Created.IsZero() || first.Tenant != "acme" {
		t.Fatalf("%+v, %v", first, err)
	}
	second, err := tn.SetSecret(ctx, Secret{Name: "openai", Reference: "env:KEY", Principal: "k2"})
	if err != nil || second.Version != 2 || !second.Created.Equal(first.Created) || second.Sealed != "" {
		t.Fatalf("%+v, %v", second, err)
	}
	if got, err := tn.Secret(ctx, "openai"); err != nil || got != second {
		t.Errorf("%+v, %v, want %+v", got, err, second)
	}
	if _, err := tn.SetSecret(ctx, Secret{Name: "a", Sealed: "two"}); err != nil {
		t.Fatal(err)
	}
	list, err := tn.ListSecrets(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "a" || list[0].Sealed != "" || list[1].Reference != "env:KEY" {
		t.Errorf("%+v, %v", list, err)
	}
	if s, err := tn.RemoveSecret(ctx, "a"); err != nil || s.Name != "a" || s.Sealed != "" {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = tn.RemoveSecret(ctx, "a")
	wantKind(t, err, sandbox.KindNotFound)
	for _, s := range []Secret{{Sealed: "x"}, {Name: "x"}, {Name: "x", Sealed: "x", Reference: "env:X"}, {Name: strings.Repeat("n", 65), Sealed: "x"}} {
		_, err := tn.SetSecret(ctx, s)
		wantKind(t, err, sandbox.KindInvalid)
	}
	_, err = tn.SetSecret(ctx, Secret{Name: "x", Sealed: strings.Repeat("x", maxSealed+1)})
	wantKind(t, err, sandbox.KindTooLarge)
}

// TestBindings: a binding is of a secret that is there, and keeps it there, however
// the two calls meet.
func TestBindings(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	_, err := tn.SetBinding(ctx, Binding{Name: "api", Secret: "openai", Body: []byte("{}")})
	wantKind(t, err, sandbox.KindNotFound)
	for _, name := range []string{"openai", "other"} {
		if _, err := tn.SetSecret(ctx, Secret{Name: name, Sealed: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	first, err := tn.SetBinding(ctx, Binding{Name: "api", Secret: "openai", Body: []byte(`{"a":1}`), Principal: "k1"})
	if err != nil || first.Version != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	_, err = tn.RemoveSecret(ctx, "openai")
	wantKind(t, err, sandbox.KindConflict)
	if !strings.Contains(err.Error(), "api") {
		t.Errorf("it does not say which: %v", err)
	}
	second, err := tn.SetBinding(ctx, Binding{Name: "api", Secret: "other", Body: []byte(`{"a":2}`), Principal: "k2"})
	if err != nil || second.Version != 2 || !second.Created.Equal(first.Created) {
		t.Fatalf("%+v, %v", second, err)
	}
	if got, err := tn.Binding(ctx, "api"); err != nil || !reflect.DeepEqual(got, second) {
		t.Errorf("%+v, %v, want %+v", got, err, second)
	}
	if list, err := tn.ListBindings(ctx); err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], second) {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := tn.RemoveSecret(ctx, "openai"); err != nil { // nothing uses it any more
		t.Error(err)
	}
	if b, err := tn.RemoveBinding(ctx, "api"); err != nil || b.Secret != "other" {
		t.Errorf("%+v, %v", b, err)
	}
	_, err = tn.RemoveBinding(ctx, "api")
	wantKind(t, err, sandbox.KindNotFound)
	if _, err := tn.RemoveSecret(ctx, "other"); err != nil {
		t.Error(err)
	}
	for _, b := range []Binding{{Secret: "x", Body: []byte("{}")}, {Name: "x", Secret: "x"}} {
		_, err := tn.SetBinding(ctx, b)
		wantKind(t, err, sandbox.KindInvalid)
	}
}

// TestBindingRace: of a binding that is set and its secret that is removed at once,
// one is refused.
func TestBindingRace(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	for range 40 {
		if _, err := tn.SetSecret(ctx, Secret{Name: "s", Sealed: "x"}); err != nil {
			t.Fatal(err)
		}
		var set, removed error
		var wg sync.WaitGroup
		wg.Go(func() { _, set = tn.SetBinding(ctx, Binding{Name: "b", Secret: "s", Body: []byte("{}")}) })
		wg.Go(func() { _, removed = tn.RemoveSecret(ctx, "s") })
		wg.Wait()
		if (set == nil) == (removed == nil) {
			t.Fatalf("set: %v; removed: %v", set, removed)
		}
		if set == nil {
			if _, err := tn.RemoveBinding(ctx, "b"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSecretsAreBounded: so many, however many ask at once, and each tenant has its
// own; so are bindings.
func TestSecretsAreBounded(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for i := range MaxSecrets + 20 {
		wg.Go(func() {
			_, err := tn.SetSecret(ctx, Secret{Name: fmt.Sprint("s", i), Sealed: "x"})
			mu.Lock()
			defer mu.Unlock()
			if kind := sandbox.KindOf(err); kind == sandbox.KindCapacity {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := tn.ListSecrets(ctx)
	if err != nil || len(list) != MaxSecrets || refused != 20 {
		t.Fatalf("%d secrets, %d refused, %v", len(list), refused, err)
	}
	if _, err := tn.SetSecret(ctx, Secret{Name: list[0].Name, Sealed: "y"}); err != nil { // one that is there can be changed
		t.Error(err)
	}
	if _, err := s.Tenant("other").SetSecret(ctx, Secret{Name: "s", Sealed: "x"}); err != nil {
		t.Error(err)
	}
	for i := range MaxBindings + 1 {
		_, err := tn.SetBinding(ctx, Binding{Name: fmt.Sprint("b", i), Secret: list[0].Name, Body: []byte("{}")})
		if i == MaxBindings {
			wantKind(t, err, sandbox.KindCapacity)
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
