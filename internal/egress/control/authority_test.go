//go:build linux

package control

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// trusted is the certificate of whom a wire's sandbox is to trust.
func trusted(t *testing.T, k *Keeper, id string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(k.Authority(id))
	if block == nil || len(rest) > 0 {
		t.Fatalf("%s has no certificate", id)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return c
}

// TestAuthority: each wire has an authority of its own, for what its policy and its
// bindings name; whose seed it is has the same key again, and after the wire nobody.
func TestAuthority(t *testing.T) {
	seed := bytes.Repeat([]byte{3}, authority.MinSeed)
	k, _ := startKeeper(t, func(o *Options) { o.Seed = seed })
	ctx := t.Context()
	mine := []egress.Binding{{Name: "api", Host: "bound.example", Port: 443, Path: "/", As: "bearer", Secret: egress.Hidden("0123456789")}}
	must(t, k.Attach(ctx, Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("allow: [a.example, '*.b.example', {cidr: 192.0.2.0/24}]\n")}}, Bindings: mine}, newPlace(t).tap))
	must(t, k.Attach(ctx, Wire{ID: "in2", Policies: Policies{Documents: [][]byte{[]byte("allow: []\n")}}}, newPlace(t).tap))
	first, other := trusted(t, k, "in1"), trusted(t, k, "in2")
	if want := []string{"a.example", "b.example", "bound.example"}; !slices.Equal(first.PermittedDNSDomains, want) || len(first.PermittedIPRanges) != 1 || first.Subject.CommonName != "Firebreak sandbox CA in1" {
		t.Errorf("%v %v %v", first.Subject, first.PermittedDNSDomains, first.PermittedIPRanges)
	}
	if bytes.Equal(first.RawSubjectPublicKeyInfo, other.RawSubjectPublicKeyInfo) || slices.Contains(other.PermittedDNSDomains, "a.example") || len(other.ExcludedDNSDomains) == 0 {
		t.Errorf("another sandbox's: %v %v", other.PermittedDNSDomains, other.ExcludedDNSDomains)
	}
	if _, _, err := k.Update(ctx, "in1", Policies{Documents: [][]byte{[]byte("allow: [c.example]\n")}}); err != nil {
		t.Fatal(err)
	}
	next := trusted(t, k, "in1")
	if want := []string{"bound.example", "c.example"}; !slices.Equal(next.PermittedDNSDomains, want) || !bytes.Equal(first.RawSubjectPublicKeyInfo, next.RawSubjectPublicKeyInfo) {
		t.Errorf("after the update: %v", next.PermittedDNSDomains)
	}
	if _, _, err := k.Update(ctx, "in1", Policies{Documents: [][]byte{[]byte("[")}}); err == nil || !bytes.Equal(trusted(t, k, "in1").Raw, next.Raw) {
		t.Errorf("after an update that failed: %v", err)
	}
	k.mu.Lock()
	kept := k.wires["in1"].authority
	k.mu.Unlock()
	was := router(t, k)
	must(t, syscall.Kill(was, syscall.SIGKILL))
	eventually(t, "the next router serves", func() bool {
		st, err := k.Stats(ctx)
		return err == nil && st.Wires == 2 && router(t, k) != was
	})
	if !bytes.Equal(trusted(t, k, "in1").Raw, next.Raw) {
		t.Error("another one for the next router")
	}
	must(t, k.Detach(ctx, "in1"))
	if k.Authority("in1") != nil || strings.Trim(string(kept.Key), "\x00") != "" {
		t.Error("the keeper still has the key, or says that there is one")
	}
	k.mu.Lock()
	kept = k.wires["in2"].authority
	k.mu.Unlock()
	must(t, k.Close())
	if k.Authority("in2") != nil || strings.Trim(string(kept.Key), "\x00") != "" || strings.Trim(string(k.seed), "\x00") != "" {
		t.Error("a keeper that is closed has a key")
	}
	if strings.Trim(string(seed), "\x00") == "" {
		t.Error("the caller's seed is overwritten")
	}
	again, _ := startKeeper(t, func(o *Options) { o.Seed = seed })
	must(t, again.Attach(ctx, Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("allow: []\n")}}}, newPlace(t).tap))
	if !bytes.Equal(trusted(t, again, "in1").RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Error("another key after a restart")
	}
	alone, _ := startKeeper(t, nil)
	must(t, alone.Attach(ctx, Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("allow: []\n")}}}, newPlace(t).tap))
	if bytes.Equal(trusted(t, alone, "in1").RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Error("the same key without a seed")
	}
	short, _ := startKeeper(t, func(o *Options) { o.Seed = []byte("short") })
	if err := short.Attach(ctx, Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("allow: []\n")}}}, newPlace(t).tap); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("with a short seed: %v", err)
	}
}

// TestAuthorityOverInstances: who goes on with another wire trusts the authority of the
// one before, after a router that died as well, and nobody else's; a wire that was cut
// is nobody's until it is attached again, and has used what it had.
func TestAuthorityOverInstances(t *testing.T) {
	k, _ := startKeeper(t, nil)
	ctx := t.Context()
	docs := Policies{Documents: [][]byte{[]byte("allow: [a.example]\n")}}
	used := map[string]policy.Used{"a.example:443": {Connections: 3}}
	must(t, k.Attach(ctx, Wire{ID: "in1", Authority: "sb1", Policies: docs, Used: used}, newPlace(t).tap))
	first := trusted(t, k, "in1")
	got, err := k.Cut(ctx, "in1")
	if err != nil || got["a.example:443"].Connections != 3 || k.Authority("in1") != nil {
		t.Errorf("after the cut: %v, %v", got, err)
	}
	if got, err := k.Cut(ctx, "in1"); err != nil || got != nil {
		t.Errorf("again: %v, %v", got, err)
	}
	must(t, k.Attach(ctx, Wire{ID: "in2", Authority: "sb1", Policies: docs, Used: got}, newPlace(t).tap))
	must(t, k.Attach(ctx, Wire{ID: "in3", Authority: "sb3", Policies: docs}, newPlace(t).tap))
	if _, _, err := k.Update(ctx, "in2", Policies{Documents: [][]byte{[]byte("allow: [b.example]\n")}}); err != nil {
		t.Fatal(err)
	}
	next, other := trusted(t, k, "in2"), trusted(t, k, "in3")
	if !bytes.Equal(first.RawSubjectPublicKeyInfo, next.RawSubjectPublicKeyInfo) || !bytes.Equal(first.RawSubject, next.RawSubject) || next.Subject.CommonName != "Firebreak sandbox CA sb1" {
		t.Errorf("%v, then %v", first.Subject, next.Subject)
	}
	if bytes.Equal(first.RawSubjectPublicKeyInfo, other.RawSubjectPublicKeyInfo) {
		t.Error("another sandbox has the same key")
	}
}
