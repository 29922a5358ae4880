package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestPolicies(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	set := func(text, had string) (Policy, error) {
		return tn.SetPolicy(ctx, Policy{Name: "build", Text: text, Principal: "k1"}, had)
	}
	first, err := set("allow: [a.example.com]", NoDigest)
	sum := sha256.Sum256([]byte("allow: [a.example.com]"))
	if err != nil || first.Version != 1 || first.Digest != hex.EncodeToString(sum[:]) || first.Created.IsZero() || first.Tenant != "acme" {
		t.Fatalf("%+v, %v", first, err)
	}
	for _, had := range []string{NoDigest, strings.Repeat("0", 64)} {
		if _, err := set("allow: []", had); sandbox.KindOf(err) != sandbox.KindConflict {
			t.Errorf("%q: %v", had, err)
		}
	}
	second, err := set("allow: [b.example.com]", first.Digest)
	if err != nil || second.Version != 2 || !second.Created.Equal(first.Created) || second.Digest == first.Digest {
		t.Fatalf("%+v, %v", second, err)
	}
	got, err := tn.Policy(ctx, "build")
	if err != nil || got != second {
		t.Errorf("%+v, %v, want %+v", got, err, second)
	}
	list, err := tn.ListPolicies(ctx)
	if err != nil || len(list) != 1 || list[0].Text != "" || list[0].Digest != second.Digest {
		t.Errorf("%+v, %v", list, err)
	}
	if p, err := tn.RemovePolicy(ctx, "build"); err != nil || p != second {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = tn.RemovePolicy(ctx, "build")
	wantKind(t, err, sandbox.KindNotFound)
	_, err = tn.Policy(ctx, "build")
	wantKind(t, err, sandbox.KindNotFound)
	for _, p := range []Policy{{Text: "x"}, {Name: "x"}, {Name: strings.Repeat("n", 65), Text: "x"}} {
		_, err := tn.SetPolicy(ctx, p, AnyDigest)
		wantKind(t, err, sandbox.KindInvalid)
	}
	_, err = tn.SetPolicy(ctx, Policy{Name: "x", Text: strings.Repeat("#", 256<<10+1)}, AnyDigest)
	wantKind(t, err, sandbox.KindTooLarge)
}

// TestPoliciesAreBounded: so many, however many ask at once, and each tenant has
// its own.
func TestPoliciesAreBounded(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for i := range MaxPolicies + 20 {
		wg.Go(func() {
			_, err := tn.SetPolicy(ctx, Policy{Name: fmt.Sprint("p", i), Text: "allow: []"}, AnyDigest)
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
	if list, err := tn.ListPolicies(ctx); err != nil || len(list) != MaxPolicies || refused != 20 {
		t.Errorf("%d policies, %d refused, %v", len(list), refused, err)
	}
	list, err := tn.ListPolicies(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tn.SetPolicy(ctx, Policy{Name: list[0].Name, Text: "deny: []"}, AnyDigest); err != nil { // one that is there can be changed
		t.Error(err)
	}
	if _, err := s.Tenant("other").SetPolicy(ctx, Policy{Name: "p", Text: "allow: []"}, AnyDigest); err != nil {
		t.Error(err)
	}
}
