package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// real is a Server over the real operations, log and keys, the model backend,
// and templates that are only named.
type real struct {
	t       *testing.T
	srv     *Server
	svc     *service.Service
	log     *audit.Log
	keys    *auth.Authenticator
	said    said
	dir     string
	owner   string // a key
	viewer  string
	seen    sandbox.Position // records looked at so far
	id      string           // a live sandbox
	watched string           // the path of a watcher that has seen "seen"
	run     string           // a run that has ended, with the artifact "kept"
}

func newReal(t *testing.T) *real {
	t.Helper()
	r := &real{t: t, dir: t.TempDir()}
	quiet := slog.New(slog.DiscardHandler)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	closes := func(f func() error) {
		t.Cleanup(func() {
			if err := f(); err != nil {
				t.Error(err)
			}
		})
	}
	st, err := store.Open(t.Context(), filepath.Join(r.dir, "state.db"), quiet)
	must(err)
	closes(st.Close)
	r.log, err = audit.Open(r.audit(), audit.Options{}, quiet)
	must(err)
	closes(r.log.Close)
	hub, err := event.Open(filepath.Join(r.dir, "events"), event.Options{}, quiet)
	must(err)
	closes(hub.Close)
	keys := auth.New(st, auth.Options{})
	closes(keys.Close)
	r.keys = keys
	backend := sim.New(sim.Config{})
	closes(backend.Close)
	o, err := orchestrator.New(orchestrator.Config{Backends: []sandbox.Backend{saving{backend}}, Store: st, Recorder: r.log, Events: hub, Templates: named{},
		Runs: filepath.Join(r.dir, "runs"), Defaults: orchestrator.Defaults{Backend: "sim"}, DestroyOnClose: true, Log: quiet,
		Memory: func() (int64, int64) { return 64 << 30, 48 << 30 }})
	must(err)
	must(o.Start(t.Context()))
	closes(func() error { return o.Close(context.Background()) })
	tokens, err := auth.OpenTokens(r.dir)
	must(err)
	r.svc, err = service.New(service.Config{Orchestrator: o, Store: st, Auth: keys, Events: hub, Recorder: r.log, Tokens: tokens,
		Broker:   broker.New(filepath.Join(r.dir, "secrets"), service.FindSecret(st)),
		Evidence: r.log, EvidenceDir: r.audit(), Templates: named{}})
	must(err)
	closes(r.svc.Close)
	r.srv, err = New(Config{API: r.svc, Auth: keys, Log: slog.New(slog.NewJSONHandler(&r.said, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	must(err)
	root := auth.Principal{Tenant: sandbox.DefaultTenant, ID: "test", Role: auth.Owner}
	r.owner, _, err = keys.CreateKey(t.Context(), root, auth.NewKeyRequest{Role: auth.Owner})
	must(err)
	r.viewer, _, err = keys.CreateKey(t.Context(), root, auth.NewKeyRequest{Role: auth.Viewer})
	must(err)
	return r
}

func (r *real) audit() string { return filepath.Join(r.dir, "audit", "server") }

// call sends one REST request with key, or none.
func (r *real) call(key, method, path, body string) (int, string) {
	r.t.Helper()
	req := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	w := httptest.NewRecorder()
	r.srv.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

// did sends a request of the owner's, which must succeed.
func (r *real) did(method, path, body string) string {
	r.t.Helper()
	code, answer := r.call(r.owner, method, path, body)
	if code/100 != 2 {
		r.t.Fatalf("%s %s: %d %s", method, path, code, answer)
	}
	return answer
}

// fresh returns the records that are new, flushed.
func (r *real) fresh() (recs []sandbox.Record) {
	r.t.Helper()
	if _, err := r.log.Record(r.t.Context(), sandbox.Record{Tenant: sandbox.DefaultTenant, Action: "test.flush", Outcome: sandbox.OutcomeDone}); err != nil {
		r.t.Fatal(err)
	}
	for e, err := range audit.Scan(r.audit(), r.seen+1) {
		if err != nil {
			r.t.Fatal(err)
		}
		r.seen = e.Position
		if e.Record.Action != "test.flush" {
			recs = append(recs, e.Record)
		}
	}
	return recs
}

// prepare makes what calls are about.
func (r *real) prepare() {
	r.t.Helper()
	r.id = member(r.t, r.did("POST", "/v1/sandboxes", `{"name":"prepared"}`), "id")
	r.did("PUT", r.path("/files?path=there"), "content")
	r.watched = r.watcher()
	r.did("PUT", r.path("/files?path=seen"), "content")
	r.over(r.start(`{"code":"true","language_pack":"shell","tag":"kept"}`))
	r.run = member(r.t, r.did("POST", "/v1/runs", `{"program":{"code":"echo x > kept","language_pack":"shell"},"artifacts":["kept"]}`), "id")
	r.await(r.run)
	r.did("POST", r.path("/contexts/python/eval"), `{"code":"# sim: show x"}`)
	r.fresh()
}

// begun calls then once an answer has begun.
type begun struct {
	*httptest.ResponseRecorder
	then func()
}

func (b *begun) Write(p []byte) (int, error) {
	n, err := b.ResponseRecorder.Write(p)
	b.then()
	return n, err
}

// watcher makes one and returns its path.
func (r *real) watcher() string {
	r.t.Helper()
	return r.path("/files/watchers/" + member(r.t, r.did("POST", r.path("/files/watchers"), `{}`), "watcher"))
}

// await waits for the end of a run, whose records are others' otherwise.
func (r *real) await(id string) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(r.did("GET", "/v1/runs/"+id+"?wait_ms=5000", ""), `"state":"ended"`); {
		if time.Now().After(end) {
			r.t.Fatal("the run does not end")
		}
	}
}

// start starts a program and returns its path.
func (r *real) start(body string) string {
	r.t.Helper()
	var p struct{ PID int }
	if err := json.Unmarshal([]byte(r.did("POST", r.path("/processes"), body)), &p); err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprint(r.path("/processes/"), p.PID)
}

// over waits for the end of a program.
func (r *real) over(path string) { r.did("GET", path+"?wait_ms=60000", "") }

func (r *real) path(rest string) string { return "/v1/sandboxes/" + r.id + rest }

// hijacked is a recorder whose connection can be had.
type hijacked struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

// Hijack implements http.Hijacker.
func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return h.conn, bufio.NewReadWriter(bufio.NewReader(h.conn), bufio.NewWriter(h.conn)), nil
}

// upgrade makes a connection of a call, and ends it.
func (r *real) upgrade(path string) {
	r.t.Helper()
	req := httptest.NewRequest("GET", "http://localhost"+path, nil)
	req.Header.Set("Authorization", "Bearer "+r.owner)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	ours, theirs := net.Pipe()
	w := hijacked{httptest.NewRecorder(), theirs}
	over := make(chan struct{})
	go func() { r.srv.ServeHTTP(w, req); close(over); theirs.Close() }()
	res, err := http.ReadResponse(bufio.NewReader(ours), req)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		r.t.Fatalf("%v, %v: %d %s", res, err, w.Code, w.Body)
	}
	ours.Close()
	<-over
}

// second makes a sandbox beside r.id.
func (r *real) second() string { return member(r.t, r.did("POST", "/v1/sandboxes", `{}`), "id") }

func member(t *testing.T, body, name string) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	s, _ := m[name].(string)
	return s
}

// calls drives every method once, so that it succeeds. A method that is missing
// here fails TestEveryCallLeavesItsRecord.
var calls = map[string]func(*real){
	"SandboxService.CreateSandbox": func(r *real) { r.did("POST", "/v1/sandboxes", `{}`) },
	"SandboxService.GetSandbox":    func(r *real) { r.did("GET", r.path(""), "") },
	"SandboxService.DialPort":      func(r *real) { r.upgrade(r.path("/ports/7")) },
	"SandboxService.GetMetrics":    func(r *real) { r.did("GET", r.path("/metrics"), "") },
	"SandboxService.ListSandboxes": func(r *real) { r.did("GET", "/v1/sandboxes", "") },
	"SandboxService.DestroySandbox": func(r *real) {
		r.did("DELETE", "/v1/sandboxes/"+member(r.t, r.did("POST", "/v1/sandboxes", `{}`), "id"), "")
	},
	"SandboxService.SetTimeout": func(r *real) { r.did("POST", r.path("/timeout"), `{"timeout_ms":3600000}`) },
	"SandboxService.UpdateNetwork": func(r *real) {
		if got := r.did("PUT", r.path("/network"), `{}`); strings.TrimSpace(got) != `{"closed_connections":0}` {
			r.t.Error(got)
		}
	},
	"SandboxService.Exec":        func(r *real) { r.did("POST", r.path("/exec"), `{"code":"true","language_pack":"shell"}`) },
	"SandboxService.WatchEvents": func(r *real) { r.did("GET", r.path("/events?no_follow=true"), "") },

	"ProcessService.StartProcess":  func(r *real) { r.over(r.start(`{"code":"true","language_pack":"shell"}`)) },
	"ProcessService.ListProcesses": func(r *real) { r.did("GET", r.path("/processes"), "") },
	"ProcessService.GetProcess":    func(r *real) { r.did("GET", r.path("/processes/kept"), "") },
	"ProcessService.StreamProcess": func(r *real) { r.did("GET", r.path("/processes/kept/stream"), "") },
	"ProcessService.KillProcess":   func(r *real) { r.did("DELETE", r.start(`{"command":"sleep","args":["60"]}`), "") },
	"ProcessService.SignalProcess": func(r *real) {
		path := r.start(`{"command":"sleep","args":["60"]}`)
		r.did("POST", path+"/signal", `{"signal":"TERM"}`)
		r.over(path)
	},
	"ProcessService.WriteStdin": func(r *real) {
		path := r.start(`{"command":"cat","open_stdin":true}`)
		r.did("POST", path+"/stdin", `{"text":"x","close":true}`)
		r.over(path)
	},

	"ProcessService.ResizeProcess": func(r *real) {
		path := r.start(`{"command":"cat","pty":{"cols":80,"rows":24}}`)
		r.did("POST", path+"/resize", `{"cols":132,"rows":43}`)
		r.did("DELETE", path, "")
	},

	"ContextService.CreateContext": func(r *real) { r.did("POST", r.path("/contexts"), `{}`) },
	"ContextService.ListContexts":  func(r *real) { r.did("GET", r.path("/contexts"), "") },
	"ContextService.GetContext":    func(r *real) { r.did("GET", r.path("/contexts/python"), "") },
	"ContextService.DeleteContext": func(r *real) {
		r.did("DELETE", r.path("/contexts/"+member(r.t, r.did("POST", r.path("/contexts"), `{}`), "id")), "")
	},
	"ContextService.Eval":             func(r *real) { r.did("POST", r.path("/contexts/python/eval"), `{"code":"# sim: show x"}`) },
	"ContextService.InterruptContext": func(r *real) { r.did("POST", r.path("/contexts/python/interrupt"), `{}`) },
	"ContextService.RestartContext":   func(r *real) { r.did("POST", r.path("/contexts/python/restart"), `{}`) },

	"FileService.ReadFile":    func(r *real) { r.did("GET", r.path("/files?path=there"), "") },
	"FileService.WriteFile":   func(r *real) { r.did("PUT", r.path("/files?path=new"), "content") },
	"FileService.ReadArchive": func(r *real) { r.did("GET", r.path("/files/archive"), "") },
	"FileService.WriteArchive": func(r *real) {
		r.did("PUT", r.path("/files/archive?path=unpacked"), string(make([]byte, 1024)))
	},
	"FileService.StatFile":  func(r *real) { r.did("GET", r.path("/files/stat?path=there"), "") },
	"FileService.ListFiles": func(r *real) { r.did("GET", r.path("/files/list?path=."), "") },
	"FileService.SignFile":  func(r *real) { r.did("POST", r.path("/files/sign"), `{"path":"there","operation":"read"}`) },
	"FileService.WatchFiles": func(r *real) {
		r.did("POST", r.path("/files/mkdir"), `{"path":"watched"}`)
		req := httptest.NewRequest("GET", "http://localhost"+r.path("/files/watch?path=watched"), nil)
		req.Header.Set("Authorization", "Bearer "+r.owner)
		w := &begun{ResponseRecorder: httptest.NewRecorder(), then: sync.OnceFunc(func() { r.did("DELETE", r.path("/files?path=watched"), "") })}
		r.srv.ServeHTTP(w, req) // until the directory is gone
		if got := w.Body.String(); !strings.Contains(got, "event: start") || !strings.Contains(got, "event: remove") {
			r.t.Errorf("%d %q", w.Code, got)
		}
	},
	"FileService.CreateWatcher": func(r *real) { r.watcher() },
	"FileService.GetWatcherEvents": func(r *real) {
		for got := ""; !strings.Contains(got, `"path":"seen"`); {
			got = r.did("GET", r.watched, "")
		}
	},
	"FileService.RemoveWatcher": func(r *real) {
		path := r.watcher()
		r.did("DELETE", path, "")
		if code, _ := r.call(r.owner, "GET", path, ""); code != http.StatusNotFound {
			r.t.Errorf("removed: %d", code)
		}
	},
	"FileService.MakeDirectory": func(r *real) { r.did("POST", r.path("/files/mkdir"), `{"path":"d"}`) },
	"FileService.MoveFile": func(r *real) {
		r.did("PUT", r.path("/files?path=from"), "content")
		r.did("POST", r.path("/files/move"), `{"from":"from","to":"to"}`)
	},
	"FileService.RemoveFile": func(r *real) {
		r.did("PUT", r.path("/files?path=gone"), "content")
		r.did("DELETE", r.path("/files?path=gone"), "")
	},

	"RunService.CreateRun": func(r *real) {
		r.await(member(r.t, r.did("POST", "/v1/runs", `{"program":{"code":"true","language_pack":"shell"}}`), "id"))
	},
	"RunService.StartRun": func(r *real) {
		id := member(r.t, r.did("POST", "/v1/runs", `{"program":{"code":"true","language_pack":"shell"},"await_inputs":true}`), "id")
		r.did("POST", "/v1/runs/"+id+"/start", `{}`)
		r.await(id)
	},
	"RunService.GetRun": func(r *real) { r.did("GET", "/v1/runs/"+r.run, "") },
	"RunService.CancelRun": func(r *real) {
		id := member(r.t, r.did("POST", "/v1/runs", `{"program":{"code":"true","language_pack":"shell"},"await_inputs":true}`), "id")
		r.did("DELETE", "/v1/runs/"+id, "")
	},
	"RunService.WatchRun":     func(r *real) { r.did("GET", "/v1/runs/"+r.run+"/events", "") },
	"RunService.ReadArtifact": func(r *real) { r.did("GET", "/v1/runs/"+r.run+"/artifacts/kept", "") },

	"SystemService.ListBackends":     func(r *real) { r.did("GET", "/v1/backends", "") },
	"SystemService.ListTemplates":    func(r *real) { r.did("GET", "/v1/templates", "") },
	"SystemService.BuildTemplate":    func(r *real) { r.did("POST", "/v1/templates", `{"name":"python"}`) },
	"SystemService.UploadArchive":    func(r *real) { r.did("PUT", "/v1/templates/uploads", "archive") },
	"SystemService.RemoveTemplate":   func(r *real) { r.did("DELETE", "/v1/templates/python", "") },
	"SystemService.GetQuota":         func(r *real) { r.did("GET", "/v1/quota", "") },
	"SystemService.GetPool":          func(r *real) { r.did("GET", "/v1/pool", "") },
	"SystemService.CollectTemplates": func(r *real) { r.did("POST", "/v1/templates/collect", `{}`) },
	"SystemService.GetVersion":       func(r *real) { r.did("GET", "/v1/version", "") },

	"AuditService.GetCheckpoint":  func(r *real) { r.did("GET", "/v1/audit/checkpoint", "") },
	"AuditService.ListEntries":    func(r *real) { r.did("GET", "/v1/audit/entries", "") },
	"AuditService.WatchEntries":   func(r *real) { r.did("GET", "/v1/audit/entries/watch?no_follow=true", "") },
	"AuditService.ExportEvidence": func(r *real) { r.did("GET", "/v1/audit/evidence?sandbox_id="+r.id, "") },
	"AuditService.GetProof":       func(r *real) { r.did("GET", "/v1/audit/proof?position=1", "") },

	"SnapshotService.PauseSandbox": func(r *real) { r.did("POST", "/v1/sandboxes/"+r.second()+"/pause", "{}") },
	"SnapshotService.ResumeSandbox": func(r *real) {
		id := r.second()
		r.did("POST", "/v1/sandboxes/"+id+"/pause", "{}")
		r.did("POST", "/v1/sandboxes/"+id+"/resume", "{}")
	},
	"SnapshotService.ForkSandbox":    func(r *real) { r.did("POST", "/v1/sandboxes/"+r.second()+"/fork", `{"count":2}`) },
	"SnapshotService.CreateSnapshot": func(r *real) { r.did("POST", "/v1/sandboxes/"+r.second()+"/snapshots", `{"name":"warm"}`) },
	"SnapshotService.ListSnapshots":  func(r *real) { r.did("GET", "/v1/snapshots", "") },
	"SnapshotService.RemoveSnapshot": func(r *real) { r.did("DELETE", "/v1/snapshots/warm", "") },

	"PolicyService.ListPolicies": func(r *real) { r.did("GET", "/v1/policies", "") },
	"PolicyService.GetPolicy":    func(r *real) { r.did("GET", "/v1/policies/pypi", "") },
	"PolicyService.SetPolicy":    func(r *real) { r.did("PUT", "/v1/policies/build", `{"text":"allow: [a.example.com]"}`) },
	"PolicyService.RemovePolicy": func(r *real) {
		r.did("PUT", "/v1/policies/gone", `{"text":"allow: []"}`)
		r.did("DELETE", "/v1/policies/gone", "")
	},

	"SecretService.SetSecret":   func(r *real) { r.did("PUT", "/v1/secrets/token", `{"value":"s3cret"}`) },
	"SecretService.ListSecrets": func(r *real) { r.did("GET", "/v1/secrets", "") },
	"SecretService.RemoveSecret": func(r *real) {
		r.did("PUT", "/v1/secrets/gone", `{"value":"s3cret"}`)
		r.did("DELETE", "/v1/secrets/gone", "")
	},
	"SecretService.AddBinding": func(r *real) {
		r.did("PUT", "/v1/bindings/api", `{"secret":"token","host":"api.example.com"}`)
	},
	"SecretService.ListBindings": func(r *real) { r.did("GET", "/v1/bindings", "") },
	"SecretService.GetBinding":   func(r *real) { r.did("GET", "/v1/bindings/api", "") },
	"SecretService.RemoveBinding": func(r *real) {
		r.did("PUT", "/v1/bindings/gone", `{"secret":"token","host":"api.example.com"}`)
		r.did("DELETE", "/v1/bindings/gone", "")
	},

	"KeyService.CreateKey": func(r *real) { r.did("POST", "/v1/keys", `{"name":"k"}`) },
	"KeyService.ListKeys":  func(r *real) { r.did("GET", "/v1/keys", "") },
	"KeyService.DeleteKey": func(r *real) {
		var made struct{ Key struct{ ID string } }
		if err := json.Unmarshal([]byte(r.did("POST", "/v1/keys", `{"name":"k"}`)), &made); err != nil {
			r.t.Fatal(err)
		}
		r.did("DELETE", "/v1/keys/"+made.Key.ID, "")
	},
}

func accessOf(md protoreflect.MethodDescriptor) *v1.Access {
	return proto.GetExtension(md.Options(), v1.E_Access).(*v1.Access)
}

func methodName(o *operation) string { return string(o.method.Parent().Name()) + "." + o.name }

// TestEveryCallLeavesItsRecord walks the one table: whatever changes something
// leaves the record it declares, and what it leaves is in the table of actions.
func TestEveryCallLeavesItsRecord(t *testing.T) {
	r := newReal(t)
	r.prepare()
	actions := map[string]sandbox.Action{}
	for _, a := range sandbox.Actions() {
		actions[a.Name] = a
	}
	for _, o := range r.srv.registry.order {
		name, want := methodName(o), accessOf(o.method).GetAction()
		call := calls[name]
		if call == nil {
			t.Errorf("%s is driven by no test: enter it above, and what it records", name)
			continue
		}
		if a, ok := actions[want]; want != "" && (!ok || a.Later) {
			t.Errorf("%s declares the action %q, which sandbox.Actions does not have", name, want)
		}
		changes := slices.ContainsFunc(o.routes, func(rt *route) bool { return rt.method != http.MethodGet })
		if changes && want == "" {
			t.Errorf("%s is no GET and declares no action", name)
		}
		call(r)
		recs := r.fresh()
		left := false
		for _, rec := range recs {
			a, ok := actions[rec.Action]
			if !ok || a.Later {
				t.Errorf("%s left the action %q, which sandbox.Actions does not have", name, rec.Action)
			}
			class := a.Class
			if rec.Outcome == sandbox.OutcomeDone || rec.Outcome == sandbox.OutcomeFailed {
				class = max(class, a.Then)
			}
			if rec.Class != class {
				t.Errorf("%s: %s %s is of class %d, want %d", name, rec.Action, rec.Outcome, rec.Class, class)
			}
			if rec.Tenant == "" || rec.Principal == "" || rec.Outcome == "" || rec.Time.IsZero() {
				t.Errorf("%s left an incomplete record: %+v", name, rec)
			}
			left = left || rec.Action == want && rec.Outcome == sandbox.OutcomeAllowed
		}
		if want != "" && !left {
			t.Errorf("%s left no record %q: %+v", name, want, recs)
		}
		if want == "" && len(recs) > 0 {
			t.Errorf("%s declares no action and left %+v", name, recs)
		}
	}
	if extra := len(calls) - len(r.srv.registry.order); extra != 0 {
		t.Errorf("%d calls are of no method", extra)
	}
}

// TestEveryRefusalLeavesItsRecord: without a key, and with one that may not.
func TestEveryRefusalLeavesItsRecord(t *testing.T) {
	r := newReal(t)
	r.fresh()
	for _, o := range r.srv.registry.order {
		r.srv.strangers.forget()
		rt := o.routes[0]
		path := strings.NewReplacer("{id}", "x", "{name}", "x", "{path...}", "x").Replace(rt.template)
		name := methodName(o)
		if code, body := r.call("", rt.method, path, "{}"); code != 401 {
			t.Errorf("%s without a key: %d %s", name, code, body)
		}
		recs := r.fresh()
		if len(recs) != 1 || recs[0].Action != "auth.failure" || recs[0].Outcome != sandbox.OutcomeDenied || recs[0].Detail["method"] != name || recs[0].Object != "192.0.2.1" {
			t.Errorf("%s without a key left %+v", name, recs)
		}
		if auth.Viewer.Has(o.scope) {
			continue
		}
		if code, body := r.call(r.viewer, rt.method, path, "{}"); code != 403 {
			t.Errorf("%s by a viewer: %d %s", name, code, body)
		}
		want := accessOf(o.method).GetAction()
		if want == "" {
			want = "api.refuse"
		}
		recs = r.fresh()
		if len(recs) != 1 || recs[0].Action != want || recs[0].Outcome != sandbox.OutcomeDenied || recs[0].Object != name || recs[0].Principal == "" || recs[0].Tenant != "default" {
			t.Errorf("%s by a viewer left %+v, want one %s", name, recs, want)
		}
	}
	// Refused in the middle of an operation, too.
	r.prepare()
	if code, _ := r.call(r.owner, "POST", r.path("/exec"), `{"command":"true","user":"root"}`); code != 403 {
		t.Errorf("root: %d", code)
	}
	if recs := r.fresh(); len(recs) != 1 || recs[0].Action != "process.exec" || recs[0].Outcome != sandbox.OutcomeDenied {
		t.Errorf("root left %+v", recs)
	}
	r.srv.strangers.forget()
	// A wrong key is named by its id, never by its secret.
	token, id, _ := auth.NewKey()
	if code, _ := r.call(token, "GET", "/metrics", ""); code != 401 {
		t.Errorf("a key nobody made: %d", code)
	}
	if recs := r.fresh(); len(recs) != 1 || recs[0].Detail["key"] != id || recs[0].Detail["method"] != "metrics" {
		t.Errorf("a key nobody made left %+v", recs)
	}
}

// TestEvidenceHoldsNoSecret: canaries in all that may be secret are nowhere in
// the log's directory, and their digests are.
func TestEvidenceHoldsNoSecret(t *testing.T) {
	r := newReal(t)
	canary := func(name string) string { return "canary-" + name + "-3f9ab6c2" }
	stdin, code, arg, file, large := canary("stdin"), "echo "+canary("code"), canary("arg"), canary("file"), strings.Repeat(canary("large"), 10_000)
	r.id = member(t, r.did("POST", "/v1/sandboxes", `{"env":{"A":"`+canary("env")+`"},"metadata":{"m":"`+canary("metadata")+`"}}`), "id")
	r.did("POST", r.path("/exec"), `{"code":"`+code+`","language_pack":"shell","stdin":"`+stdin+`","env":{"B":"`+canary("exec-env")+`"}}`)
	r.did("POST", r.path("/exec"), `{"command":"echo","args":["`+arg+`","x"]}`)
	r.did("PUT", r.path("/files?path=f"), file)
	r.did("PUT", r.path("/files?path=g"), large)
	r.did("GET", r.path("/files?path=g"), "")
	run := r.did("POST", "/v1/runs", `{"sandbox":{"env":{"A":"`+canary("run-env")+`"}},"inputs":[{"path":"in","text":"`+canary("input")+`"}],
		"program":{"code":"cat in; echo `+canary("output")+`","language_pack":"shell","stdin":"`+canary("run-stdin")+`","env":{"C":"`+canary("program-env")+`"}}}`)
	r.await(member(t, run, "id"))
	secret := member(t, r.did("POST", "/v1/keys", `{"name":"k"}`), "secret")
	last := map[bool]string{true: "y", false: "x"}[strings.HasSuffix(secret, "x")]
	if code, _ := r.call(secret[:len(secret)-1]+last, "GET", "/v1/sandboxes", ""); code != 401 {
		t.Errorf("a mistyped key: %d", code)
	}
	if code, _ := r.call(canary("key"), "GET", "/v1/sandboxes", ""); code != 401 {
		t.Errorf("no key at all: %d", code)
	}
	answer := r.did("DELETE", r.path(""), "")
	recs := r.fresh()
	digests := map[string]bool{}
	receipt := ""
	for _, rec := range recs {
		digests[rec.Digest], digests[rec.Detail["stdin"]] = true, true
		if rec.Action == "sandbox.receipt" && string(rec.Sandbox) == r.id {
			receipt = rec.Digest
		}
	}
	for name, content := range map[string]string{"code": code, "stdin": stdin, "argv": "echo\x00" + arg + "\x00x\x00", "file": file, "large file": large} {
		if sum := sha256.Sum256([]byte(content)); !digests[hex.EncodeToString(sum[:])] {
			t.Errorf("the digest of the %s is not in the log", name)
		}
	}
	if got := receiptDigest(t, answer); receipt == "" || got != receipt {
		t.Errorf("the receipt in the answer has the digest %s, the record %s", got, receipt)
	}
	err := filepath.WalkDir(filepath.Dir(r.audit()), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, s := range []string{"3f9ab6c2", secret[14:40]} {
			if at := bytes.Index(b, []byte(s)); at >= 0 {
				t.Errorf("%s holds %q", path, b[max(0, at-40):min(len(b), at+40)])
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// receiptDigest is what docs/guides/audit-records.md tells others to compute.
func receiptDigest(t *testing.T, answer string) string {
	t.Helper()
	var body struct{ Receipt map[string]any }
	if err := json.Unmarshal([]byte(answer), &body); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // maps come out sorted, without spaces
	if err := enc.Encode(body.Receipt); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(bytes.TrimSuffix(b.Bytes(), []byte("\n"))))
}

// named is templates by name only.
type named struct{}

var hostTemplate = template.Template{Name: "host", Digest: "sha256:" + strings.Repeat("a", 64), Packs: []string{"python", "shell"}, Default: "python",
	Root: sandbox.Root{Mutable: true}}

func (named) Resolve(context.Context, string) (template.Template, error) { return hostTemplate, nil }
func (named) Choose(context.Context, string) (template.Template, error)  { return hostTemplate, nil }
func (named) Check(context.Context, string) error                        { return nil }

func (named) Acquire(string) (func(), error) { return func() {}, nil }
func (named) List(context.Context) ([]template.Template, error) {
	return []template.Template{hostTemplate}, nil
}
func (named) Remove(context.Context, string) error { return nil }
func (named) Receive(_ context.Context, _ string, r io.Reader) (string, int64, error) {
	n, err := io.Copy(io.Discard, r)
	return "up1", n, err
}
func (named) Collect(context.Context, template.CollectOptions) (template.Collected, error) {
	return template.Collected{}, nil
}
func (named) Build(_ context.Context, name string, _ template.BuildOptions) (template.Template, error) {
	return template.Template{Name: name, Digest: hostTemplate.Digest}, nil
}
