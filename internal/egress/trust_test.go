//go:build linux

package egress

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestAuthority: a wire has the authority that it was given last; what is none
// changes nothing, and no key is left where it came from.
func TestAuthority(t *testing.T) {
	derive := func(names ...string) *authority.Authority {
		a, err := authority.Derive(bytes.Repeat([]byte{1}, authority.MinSeed), "one", policy.Scope{Names: names}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	wiped := func(a *authority.Authority) bool { return strings.Trim(string(a.Key), "\x00") == "" }
	r := New(Config{Record: new(journal).record})
	t.Cleanup(func() { _ = r.Close() })
	broken := derive("good.example")
	broken.Certificate = broken.Certificate[1:]
	if err := r.Attach(Wire{ID: "one", Table: table(t, raw), Authority: broken}, newPlace(t).tap); sandbox.KindOf(err) != sandbox.KindInvalid || !wiped(broken) {
		t.Errorf("attached with no authority: %v", err)
	}
	first := derive("good.example")
	if err := r.Attach(Wire{ID: "one", Table: table(t, raw), Authority: first}, newPlace(t).tap); err != nil || !wiped(first) {
		t.Fatalf("the key is still there, or %v", err)
	}
	vouches := func(name string) bool {
		w, err := r.find("test", "one")
		if err != nil {
			t.Fatal(err)
		}
		h, err := netaddr.ParseHost(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.issuer.Load().Leaf(h, time.Now())
		return err == nil
	}
	if !vouches("good.example") || vouches("other.example") {
		t.Error("the wire's authority is another one")
	}
	broken = derive("other.example")
	broken.Key[40] ^= 1 // of the number that is the key
	if _, _, err := r.Update("one", table(t, raw), broken); sandbox.KindOf(err) != sandbox.KindInvalid || !wiped(broken) || !vouches("good.example") {
		t.Errorf("updated to no authority: %v", err)
	}
	next := derive("other.example")
	if g, _, err := r.Update("one", table(t, raw), next); err != nil || g != 2 || !wiped(next) || vouches("good.example") || !vouches("other.example") {
		t.Errorf("generation %d, %v", g, err)
	}
	if _, _, err := r.Update("one", table(t, raw), nil); err != nil || !vouches("other.example") {
		t.Errorf("an update without an authority: %v", err)
	}
	gone := derive("other.example")
	if _, _, err := r.Update("two", table(t, raw), gone); sandbox.KindOf(err) != sandbox.KindNotFound || !wiped(gone) {
		t.Errorf("of no wire: %v", err)
	}
}
