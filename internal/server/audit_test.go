package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// entry is one of GET /v1/audit/entries, as a stranger to our types reads it.
type entry struct {
	ID        int64             `json:"id"`
	Time      time.Time         `json:"time"`
	BootID    string            `json:"boot_id"`
	Monotonic int64             `json:"monotonic_ns"`
	Class     string            `json:"class"`
	Tenant    string            `json:"tenant"`
	Sandbox   string            `json:"sandbox_id"`
	Principal string            `json:"principal"`
	Action    string            `json:"action"`
	Outcome   string            `json:"outcome"`
	Previous  int64             `json:"previous"`
	Detail    map[string]string `json:"detail"`
	Leaf      []byte            `json:"leaf"`
	Payload   []byte            `json:"payload"`
	Proof     [][]byte          `json:"proof"`
}

// pages reads all of a key's entries, a few at a time.
func (r *real) pages(key, query string) (all []entry) {
	r.t.Helper()
	for after := int64(0); ; {
		code, body := r.call(key, "GET", fmt.Sprintf("/v1/audit/entries?after_id=%d&page_size=3%s", after, query), "")
		var page struct {
			Entries []entry
			Next    int64 `json:"next_after_id"`
			More    bool
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil || code != 200 || len(page.Entries) > 3 || page.Next < after {
			r.t.Fatalf("%d %v %s", code, err, body)
		}
		all, after = append(all, page.Entries...), page.Next
		if !page.More {
			return all
		}
	}
}

func hash(t *testing.T, b []byte) (h tlog.Hash) {
	t.Helper()
	if len(b) != len(h) {
		t.Fatalf("a hash of %d bytes", len(b))
	}
	copy(h[:], b)
	return h
}

func hashes(t *testing.T, list [][]byte) (out []tlog.Hash) {
	t.Helper()
	for _, b := range list {
		out = append(out, hash(t, b))
	}
	return out
}

// checkpoint asks for one and checks its signature.
func (r *real) checkpoint() audit.Checkpoint {
	r.t.Helper()
	v, err := note.NewVerifier(r.log.PublicKey())
	if err != nil {
		r.t.Fatal(err)
	}
	var answer struct {
		Note, Origin string
		Size         int64
		Root         []byte
		PublicKey    string `json:"public_key"`
	}
	if err := json.Unmarshal([]byte(r.did("GET", "/v1/audit/checkpoint", "")), &answer); err != nil {
		r.t.Fatal(err)
	}
	cp, _, err := audit.OpenCheckpoint([]byte(answer.Note), v)
	if err != nil || cp.Origin != answer.Origin || cp.Size != answer.Size || cp.Root != hash(r.t, answer.Root) || answer.PublicKey != r.log.PublicKey() {
		r.t.Fatalf("%+v is not %+v (%v)", answer, cp, err)
	}
	return cp
}

// TestAuditAPI: a caller's records and no others, each provably in the log that
// is signed.
func TestAuditAPI(t *testing.T) {
	r := newReal(t)
	keys := auth.Principal{Tenant: "acme", ID: "test", Role: auth.Owner}
	acme, _, err := r.keys.CreateKey(t.Context(), keys, auth.NewKeyRequest{Role: auth.Owner})
	if err != nil {
		t.Fatal(err)
	}
	r.prepare()
	code, body := r.call(acme, "POST", "/v1/sandboxes", `{"name":"theirs"}`)
	if code != 201 {
		t.Fatalf("%d %s", code, body)
	}
	theirs := member(t, body, "id")
	if _, err := r.log.Record(t.Context(), sandbox.Record{Tenant: sandbox.DefaultTenant, Principal: "system", Action: "daemon.start", Outcome: sandbox.OutcomeAllowed}); err != nil {
		t.Fatal(err)
	}
	r.did("DELETE", r.path(""), "")
	early := r.checkpoint()
	r.did("POST", "/v1/sandboxes", `{}`)
	cp := r.checkpoint()

	mine := r.pages(r.owner, fmt.Sprintf("&payloads=true&proof_size=%d", cp.Size))
	own, last := 0, int64(0)
	for _, e := range mine {
		if e.Tenant != "default" || e.Sandbox == theirs || e.ID <= last || e.Time.IsZero() || e.BootID == "" || e.Monotonic <= 0 {
			t.Errorf("shown to the default tenant: %+v", e)
		}
		last = e.ID
		if e.Action == "daemon.start" {
			own++
		}
		leaf := hash(t, e.Leaf)
		if tlog.RecordHash(e.Payload) != leaf {
			t.Errorf("the payload of %d is not that of its leaf", e.ID)
		}
		if err := tlog.CheckRecord(hashes(t, e.Proof), cp.Size, cp.Root, e.ID-1, leaf); err != nil {
			t.Errorf("the proof of %d: %v", e.ID, err)
		}
	}
	if own != 1 || len(mine) < 10 {
		t.Errorf("%d entries, %d of the server itself", len(mine), own)
	}
	for _, e := range r.pages(acme, "") {
		if e.Tenant != "acme" || len(e.Payload)+len(e.Proof) > 0 {
			t.Errorf("shown to another tenant: %+v", e)
		}
	}
	// One sandbox, back from its receipt.
	of := r.pages(r.owner, "&sandbox_id="+r.id)
	for i, e := range of {
		if want := of[max(0, i-1)].ID; i > 0 && e.Previous != want || e.Sandbox != r.id {
			t.Errorf("%+v does not follow %d", e, want)
		}
	}
	if n := len(of); n < 4 || of[0].Action != "sandbox.create" || of[n-1].Action != "sandbox.receipt" {
		t.Errorf("%+v", of)
	}
	if list := r.pages(acme, "&sandbox_id="+r.id); len(list) > 0 {
		t.Errorf("another tenant's sandbox: %+v", list)
	}
	r.checkEvidence(acme)
	r.checkProofs(early, cp, mine[0])
	r.checkBadProofs(cp)
}

// checkEvidence exports the destroyed sandbox, and tries to as another tenant.
func (r *real) checkEvidence(acme string) {
	r.t.Helper()
	path := "/v1/audit/evidence?sandbox_id=" + r.id
	file := struct{ File string }{}
	if err := json.Unmarshal([]byte(r.did("GET", path, "")), &file); err != nil {
		r.t.Fatal(err)
	}
	e, err := audit.DecodeEvidence([]byte(file.File))
	if err != nil {
		r.t.Fatal(err)
	}
	rep, err := e.Verify(audit.VerifyOptions{Key: r.log.PublicKey()})
	if err != nil || !rep.Complete || !rep.Receipt || !rep.Clean || !rep.KeyOutside {
		r.t.Errorf("%+v, %v", rep, err)
	}
	code, body := r.call(acme, "GET", path, "")
	code2, body2 := r.call(acme, "GET", "/v1/audit/evidence?sandbox_id=sbaaaaaaaaaaaaaaaaaa", "")
	if code != 404 || code2 != 404 || strings.ReplaceAll(body, r.id, "") != strings.ReplaceAll(body2, "sbaaaaaaaaaaaaaaaaaa", "") {
		r.t.Errorf("another tenant's: %d %s; unknown: %d %s", code, body, code2, body2)
	}
}

// checkProofs asks for proofs by themselves.
func (r *real) checkProofs(early, cp audit.Checkpoint, e entry) {
	r.t.Helper()
	var p struct {
		Size          int64
		Root, OldRoot []byte
		Hashes        [][]byte
	}
	get := func(query string) {
		r.t.Helper()
		p.Hashes = nil
		if err := json.Unmarshal([]byte(strings.ReplaceAll(r.did("GET", "/v1/audit/proof?"+query, ""), "old_root", "oldroot")), &p); err != nil {
			r.t.Fatal(err)
		}
	}
	get(fmt.Sprintf("position=%d&size=%d", e.ID, cp.Size))
	if err := tlog.CheckRecord(hashes(r.t, p.Hashes), p.Size, cp.Root, e.ID-1, hash(r.t, e.Leaf)); err != nil || hash(r.t, p.Root) != cp.Root {
		r.t.Errorf("inclusion: %v, %+v", err, p)
	}
	get(fmt.Sprintf("old_size=%d&size=%d", early.Size, cp.Size))
	if err := tlog.CheckTree(hashes(r.t, p.Hashes), cp.Size, cp.Root, early.Size, early.Root); err != nil || hash(r.t, p.OldRoot) != early.Root {
		r.t.Errorf("growth: %v, %+v", err, p)
	}
	get(fmt.Sprintf("position=%d", e.ID)) // in whatever is signed by now
	if p.Size < cp.Size || tlog.CheckRecord(hashes(r.t, p.Hashes), p.Size, hash(r.t, p.Root), e.ID-1, hash(r.t, e.Leaf)) != nil {
		r.t.Errorf("inclusion in the newest: %+v", p)
	}
}

func (r *real) checkBadProofs(cp audit.Checkpoint) {
	r.t.Helper()
	for _, query := range []string{"", "position=1&old_size=1", "position=-1", "position=99999999", "position=1&size=99999999", "old_size=9&size=8", "positon=1"} {
		if code, body := r.call(r.owner, "GET", "/v1/audit/proof?"+query, ""); code != 400 {
			r.t.Errorf("proof?%s: %d %s", query, code, body)
		}
	}
	for _, query := range []string{"page_size=1001", "after_id=-1", "proof_size=99999999"} {
		if code, body := r.call(r.owner, "GET", "/v1/audit/entries?"+query, ""); code != 400 {
			r.t.Errorf("entries?%s: %d %s", query, code, body)
		}
	}
	// The note as text, for those who feed it to other programs.
	req := httptest.NewRequest("GET", "http://localhost/v1/audit/checkpoint", nil)
	req.Header.Set("Authorization", "Bearer "+r.owner)
	req.Header.Set("Accept", "text/plain")
	w := httptest.NewRecorder()
	r.srv.ServeHTTP(w, req)
	text, _, _ := strings.Cut(w.Body.String(), "\n\n")
	got, err := audit.ParseCheckpoint(text + "\n")
	if err != nil || got.Size < cp.Size || got.Origin != cp.Origin || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		r.t.Errorf("%v %v %q", got, err, w.Body.String())
	}
}

// TestAuditWatch: what is recorded while somebody watches arrives, in order,
// and of another tenant nothing.
func TestAuditWatch(t *testing.T) {
	r := newReal(t)
	ctx, cancel := context.WithCancel(auth.WithPrincipal(t.Context(), auth.Principal{Tenant: "default", ID: "w", Role: auth.Admin}))
	defer cancel()
	got := make(chan *v1.AuditEntry, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := r.svc.WatchEntries(ctx, &v1.WatchEntriesRequest{}, func(e *v1.AuditEntry) error { got <- e; return nil })
		if sandbox.KindOf(err) != sandbox.KindCanceled {
			t.Errorf("the watch ended with %v", err)
		}
	})
	for i := range 20 {
		tenant := sandbox.TenantID("default")
		if i%2 == 1 {
			tenant = "acme"
		}
		class := sandbox.Class(i / 10)
		if _, err := r.log.Record(t.Context(), sandbox.Record{Class: class, Tenant: tenant, Principal: "x", Action: "key.create", Outcome: sandbox.OutcomeDone, Object: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < 20; i += 2 {
		select {
		case e := <-got:
			if e.Object != fmt.Sprint(i) || e.Tenant != "default" {
				t.Errorf("%v, want %d", e, i)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("record %d does not arrive", i)
		}
	}
	cancel()
	wg.Wait()
	// Over REST: server-sent events that can be resumed, and lines of JSON.
	for _, accept := range []string{"text/event-stream", "application/x-ndjson"} {
		req := httptest.NewRequest("GET", "http://localhost/v1/audit/entries/watch?no_follow=true&after_id=2", nil)
		req.Header.Set("Authorization", "Bearer "+r.owner)
		req.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		r.srv.ServeHTTP(w, req)
		if strings.Count(w.Body.String(), `"action":"key.create"`) != 9 || !strings.Contains(w.Body.String(), `"id":19`) {
			t.Errorf("%s: %s", accept, w.Body.String())
		}
	}
}
