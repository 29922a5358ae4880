package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// templates has the host's and says what it was asked to do.
type templates struct{ built, removed []string }

var hostTemplate = template.Template{Name: "host", Digest: "sha256:" + strings.Repeat("a", 64), Packs: []string{"python", "shell"}, Default: "python",
	Root: sandbox.Root{Mutable: true}}

func (f *templates) Resolve(ctx context.Context, name string) (template.Template, error) {
	if name != "host" {
		return template.Template{}, sandbox.Errorf("template resolve", sandbox.KindNotFound, "no template called %q", name).WithHint("build it")
	}
	return hostTemplate, nil
}
func (f *templates) Choose(context.Context, string) (template.Template, error) {
	return hostTemplate, nil
}
func (f *templates) Check(context.Context, string) error { return nil }

func (f *templates) Acquire(string) (func(), error) { return func() {}, nil }
func (f *templates) List(context.Context) ([]template.Template, error) {
	return []template.Template{hostTemplate, {Digest: "sha256:" + strings.Repeat("b", 64), Damaged: "cut short"}}, nil
}
func (f *templates) Remove(ctx context.Context, name string) error {
	f.removed = append(f.removed, name)
	return nil
}
func (f *templates) Receive(_ context.Context, owner string, r io.Reader) (string, int64, error) {
	n, err := io.Copy(io.Discard, r)
	return "up-of-" + owner, n, err
}
func (f *templates) Collect(context.Context, template.CollectOptions) (template.Collected, error) {
	return template.Collected{Templates: []string{"sha256:" + strings.Repeat("c", 64)}, Layers: 2, Bytes: 3}, nil
}
func (f *templates) Build(ctx context.Context, name string, o template.BuildOptions) (template.Template, error) {
	f.built = append(f.built, name)
	for i, stage := range []template.Stage{template.StageDownload, template.StageDone} {
		o.Progress(template.Progress{Stage: stage, Percent: 100 * i, Line: "line"})
	}
	if ctx.Err() != nil {
		return template.Template{}, sandbox.Wrap("template build", name, ctx.Err())
	}
	return template.Template{Name: name, Digest: "sha256:" + strings.Repeat("c", 64), Packs: []string{name}}, nil
}

// rig is a Service over the real parts and the model backend.
type rig struct {
	*Service
	t         *testing.T
	dir       string
	templates *templates
	sim       *sim.Backend
	log       *audit.Log
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOver(t, sim.New(sim.Config{}))
}

func newRigOver(t *testing.T, b *sim.Backend) *rig {
	t.Helper()
	return newRigWith(t, b, func(*orchestrator.Config) {})
}

func newRigWith(t *testing.T, b *sim.Backend, change func(*orchestrator.Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), templates: &templates{}, sim: b}
	quiet := slog.New(slog.DiscardHandler)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st, err := store.Open(t.Context(), filepath.Join(r.dir, "state.db"), quiet)
	must(err)
	t.Cleanup(func() { check(t, st.Close()) })
	r.log, err = audit.Open(filepath.Join(r.dir, "audit"), audit.Options{}, quiet)
	must(err)
	t.Cleanup(func() { check(t, r.log.Close()) })
	hub, err := event.Open(filepath.Join(r.dir, "events"), event.Options{}, quiet)
	must(err)
	t.Cleanup(func() { check(t, hub.Close()) })
	keys := auth.New(st, auth.Options{})
	t.Cleanup(func() { check(t, keys.Close()) })
	c := orchestrator.Config{Backends: []sandbox.Backend{r.sim}, Store: st, Recorder: r.log, Events: hub, Templates: r.templates,
		Runs: filepath.Join(r.dir, "runs"), Defaults: orchestrator.Defaults{Backend: "sim"}, DestroyOnClose: true, Log: quiet,
		Memory: func() (int64, int64) { return 64 << 30, 48 << 30 }}
	change(&c)
	o, err := orchestrator.New(c)
	must(err)
	must(o.Start(t.Context()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		check(t, o.Close(ctx))
		check(t, r.sim.Close())
	})
	r.Service, err = New(Config{Orchestrator: o, Store: st, Auth: keys, Events: hub, Recorder: r.log, Templates: r.templates,
		Broker: broker.New(filepath.Join(r.dir, "secrets"), FindSecret(st)), Version: &v1.GetVersionResponse{Version: "1.2.3"}})
	must(err)
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// as is a context of a caller.
func as(ctx context.Context, tenant sandbox.TenantID, role auth.Role) context.Context {
	return auth.WithPrincipal(ctx, auth.Principal{Tenant: tenant, ID: "key-" + string(role), Role: role})
}

func wantKind(t *testing.T, err error, kind sandbox.Kind) *sandbox.Error {
	t.Helper()
	var e *sandbox.Error
	if sandbox.KindOf(err) != kind || !errors.As(err, &e) {
		t.Fatalf("error %v is %q, want %q", err, sandbox.KindOf(err), kind)
	}
	return e
}

func (r *rig) create(ctx context.Context, req *v1.CreateSandboxRequest) *v1.Sandbox {
	r.t.Helper()
	sb, err := r.CreateSandbox(ctx, req)
	if err != nil {
		r.t.Fatal(err)
	}
	return sb
}

// exec runs and folds.
func (r *rig) exec(ctx context.Context, req *v1.ExecRequest) (out, errs string, exit *v1.ProcessExit) {
	r.t.Helper()
	started := 0
	err := r.Exec(ctx, req, func(e *v1.ExecEvent) error {
		switch e := e.GetEvent().(type) {
		case *v1.ExecEvent_Started:
			started++
		case *v1.ExecEvent_Stdout:
			out += e.Stdout.GetText() + string(e.Stdout.GetData())
		case *v1.ExecEvent_Stderr:
			errs += e.Stderr.GetText() + string(e.Stderr.GetData())
		case *v1.ExecEvent_Exit:
			exit = e.Exit
		}
		return nil
	})
	if err != nil || started != 1 || exit == nil {
		r.t.Fatalf("exec: %v, started %d times, exit %v", err, started, exit)
	}
	return out, errs, exit
}

func TestSandbox(t *testing.T) {
	r := newRig(t)
	ctx := as(t.Context(), "default", auth.Developer)
	sb := r.create(ctx, &v1.CreateSandboxRequest{Name: "web", Metadata: map[string]string{"team": "x"}, Tier: "L1",
		Limits: &v1.Limits{MemoryBytes: proto.Int64(64 << 20)}, TimeoutMs: proto.Int64(0), IdleTimeoutMs: proto.Int64(60_000)})
	if sb.State != "running" || sb.Isolation != "none" || sb.ExpiresAt != nil || sb.IdleTimeoutMs != 60_000 || sb.CreateMs <= 0 || sb.Principal != "key-developer" ||
		!sb.Limits.MemoryBytes.Explicit || !sb.Limits.MemoryBytes.Enforced || sb.Limits.MemoryBytes.Value != 64<<20 || sb.Limits.Pids.Explicit || sb.Receipt != nil {
		t.Errorf("%v", sb)
	}
	out, errs, exit := r.exec(ctx, &v1.ExecRequest{Id: "web", Code: proto.String("echo $X; echo e >&2; exit 3"), LanguagePack: "shell", Env: map[string]string{"X": "y"}})
	if out != "y\n" || errs != "e\n" || exit.ExitCode != 3 || exit.Reason != "done" || exit.DurationMs <= 0 {
		t.Errorf("%q %q %v", out, errs, exit)
	}
	_, _, exit = r.exec(ctx, &v1.ExecRequest{Id: sb.Id, Command: proto.String("/.firebreak/firebreak-guest"), Args: []string{"probe", "alloc", "1000000000"}})
	if exit.ExitCode != 137 || exit.Reason != "memory" || exit.Detail != "limit 64 MiB" {
		t.Errorf("%v", exit)
	}
	out, _, _ = r.exec(ctx, &v1.ExecRequest{Id: sb.Id, Command: proto.String("cat"), StdinData: []byte{0xff, 'a'}})
	if out != "\xffa" {
		t.Errorf("bytes: %q", out)
	}
	list, err := r.ListSandboxes(ctx, &v1.ListSandboxesRequest{Metadata: map[string]string{"team": "x"}})
	if err != nil || len(list.Sandboxes) != 1 || list.Sandboxes[0].Id != sb.Id {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := r.ListSandboxes(ctx, &v1.ListSandboxesRequest{State: "ended"}); err != nil || len(list.Sandboxes) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	moved, err := r.SetTimeout(ctx, &v1.SetTimeoutRequest{Id: sb.Id, TimeoutMs: new(int64(3_600_000))})
	if err != nil || moved.ExpiresAt == nil {
		t.Errorf("%v, %v", moved, err)
	}
	dead, err := r.DestroySandbox(ctx, &v1.DestroySandboxRequest{Id: "web"})
	if err != nil || dead.State != "ended" || dead.Reason != "operator" || !dead.Receipt.GetClean() || len(dead.Receipt.GetObjects()) == 0 {
		t.Fatalf("%v, %v", dead, err)
	}
	again, err := r.DestroySandbox(ctx, &v1.DestroySandboxRequest{Id: sb.Id})
	if err != nil || !proto.Equal(again, dead) {
		t.Errorf("again: %v, %v; first %v", again, err, dead)
	}
	got, err := r.GetSandbox(ctx, &v1.GetSandboxRequest{Id: sb.Id})
	if err != nil || got.State != "ended" || !proto.Equal(got.Receipt, dead.Receipt) || got.EndedAt == nil {
		t.Errorf("%v, %v", got, err)
	}
	err = r.Exec(ctx, &v1.ExecRequest{Id: sb.Id, Code: proto.String("x")}, func(*v1.ExecEvent) error { return nil })
	if e := wantKind(t, err, sandbox.KindGone); !strings.Contains(e.Message(), "operator") || e.Hint == "" {
		t.Errorf("%v", err)
	}
	check(t, r.log.Close())
	if _, err := audit.Verify(filepath.Join(r.dir, "audit")); err != nil {
		t.Errorf("the evidence: %v", err)
	}
}

func TestEveryMethodAsksForItsScope(t *testing.T) {
	r := newRig(t)
	nobody, viewer := t.Context(), as(t.Context(), "default", auth.Viewer)
	calls := map[string]func(context.Context) error{
		"SandboxService.CreateSandbox": func(ctx context.Context) error {
			_, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{})
			return err
		},
		"SandboxService.DialPort":   func(ctx context.Context) error { _, err := r.DialPort(ctx, "", 7); return err },
		"SandboxService.GetMetrics": func(ctx context.Context) error { _, err := r.GetMetrics(ctx, &v1.GetMetricsRequest{}); return err },
		"SandboxService.GetSandbox": func(ctx context.Context) error { _, err := r.GetSandbox(ctx, &v1.GetSandboxRequest{}); return err },
		"SandboxService.ListSandboxes": func(ctx context.Context) error {
			_, err := r.ListSandboxes(ctx, &v1.ListSandboxesRequest{})
			return err
		},
		"SandboxService.DestroySandbox": func(ctx context.Context) error {
			_, err := r.DestroySandbox(ctx, &v1.DestroySandboxRequest{})
			return err
		},
		"SandboxService.UpdateNetwork": func(ctx context.Context) error {
			_, err := r.UpdateNetwork(ctx, &v1.UpdateNetworkRequest{})
			return err
		},
		"PolicyService.ListPolicies": func(ctx context.Context) error {
			_, err := r.ListPolicies(ctx, &v1.ListPoliciesRequest{})
			return err
		},
		"PolicyService.GetPolicy": func(ctx context.Context) error { _, err := r.GetPolicy(ctx, &v1.GetPolicyRequest{}); return err },
		"PolicyService.SetPolicy": func(ctx context.Context) error { _, err := r.SetPolicy(ctx, &v1.SetPolicyRequest{}); return err },
		"PolicyService.RemovePolicy": func(ctx context.Context) error {
			_, err := r.RemovePolicy(ctx, &v1.RemovePolicyRequest{})
			return err
		},
		"SecretService.SetSecret": func(ctx context.Context) error { _, err := r.SetSecret(ctx, &v1.SetSecretRequest{}); return err },
		"SecretService.ListSecrets": func(ctx context.Context) error {
			_, err := r.ListSecrets(ctx, &v1.ListSecretsRequest{})
			return err
		},
		"SecretService.RemoveSecret": func(ctx context.Context) error {
			_, err := r.RemoveSecret(ctx, &v1.RemoveSecretRequest{})
			return err
		},
		"SecretService.AddBinding": func(ctx context.Context) error { _, err := r.AddBinding(ctx, &v1.AddBindingRequest{}); return err },
		"SecretService.ListBindings": func(ctx context.Context) error {
			_, err := r.ListBindings(ctx, &v1.ListBindingsRequest{})
			return err
		},
		"SecretService.GetBinding": func(ctx context.Context) error { _, err := r.GetBinding(ctx, &v1.GetBindingRequest{}); return err },
		"SecretService.RemoveBinding": func(ctx context.Context) error {
			_, err := r.RemoveBinding(ctx, &v1.RemoveBindingRequest{})
			return err
		},
		"SnapshotService.PauseSandbox": func(ctx context.Context) error { _, err := r.PauseSandbox(ctx, &v1.PauseSandboxRequest{}); return err },
		"SnapshotService.ResumeSandbox": func(ctx context.Context) error {
			_, err := r.ResumeSandbox(ctx, &v1.ResumeSandboxRequest{})
			return err
		},
		"SnapshotService.ForkSandbox": func(ctx context.Context) error { _, err := r.ForkSandbox(ctx, &v1.ForkSandboxRequest{}); return err },
		"SnapshotService.CreateSnapshot": func(ctx context.Context) error {
			_, err := r.CreateSnapshot(ctx, &v1.CreateSnapshotRequest{})
			return err
		},
		"SnapshotService.ListSnapshots": func(ctx context.Context) error {
			_, err := r.ListSnapshots(ctx, &v1.ListSnapshotsRequest{})
			return err
		},
		"SnapshotService.RemoveSnapshot": func(ctx context.Context) error {
			_, err := r.RemoveSnapshot(ctx, &v1.RemoveSnapshotRequest{})
			return err
		},
		"SandboxService.SetTimeout":  func(ctx context.Context) error { _, err := r.SetTimeout(ctx, &v1.SetTimeoutRequest{}); return err },
		"SandboxService.Exec":        func(ctx context.Context) error { return r.Exec(ctx, &v1.ExecRequest{}, nil) },
		"SandboxService.WatchEvents": func(ctx context.Context) error { return r.WatchEvents(ctx, &v1.WatchEventsRequest{}, nil) },
		"ContextService.CreateContext": func(ctx context.Context) error {
			_, err := r.CreateContext(ctx, &v1.CreateContextRequest{})
			return err
		},
		"ContextService.ListContexts": func(ctx context.Context) error { _, err := r.ListContexts(ctx, &v1.ListContextsRequest{}); return err },
		"ContextService.GetContext":   func(ctx context.Context) error { _, err := r.GetContext(ctx, &v1.GetContextRequest{}); return err },
		"ContextService.DeleteContext": func(ctx context.Context) error {
			_, err := r.DeleteContext(ctx, &v1.DeleteContextRequest{})
			return err
		},
		"ContextService.Eval": func(ctx context.Context) error { return r.Eval(ctx, &v1.EvalRequest{}, nil) },
		"ContextService.InterruptContext": func(ctx context.Context) error {
			_, err := r.InterruptContext(ctx, &v1.InterruptContextRequest{})
			return err
		},
		"ContextService.RestartContext": func(ctx context.Context) error {
			_, err := r.RestartContext(ctx, &v1.RestartContextRequest{})
			return err
		},
		"ProcessService.StartProcess": func(ctx context.Context) error {
			_, err := r.StartProcess(ctx, &v1.StartProcessRequest{})
			return err
		},
		"ProcessService.ListProcesses": func(ctx context.Context) error {
			_, err := r.ListProcesses(ctx, &v1.ListProcessesRequest{})
			return err
		},
		"ProcessService.GetProcess": func(ctx context.Context) error { _, err := r.GetProcess(ctx, &v1.GetProcessRequest{}); return err },
		"ProcessService.KillProcess": func(ctx context.Context) error {
			_, err := r.KillProcess(ctx, &v1.KillProcessRequest{})
			return err
		},
		"ProcessService.SignalProcess": func(ctx context.Context) error {
			_, err := r.SignalProcess(ctx, &v1.SignalProcessRequest{Signal: "TERM"})
			return err
		},
		"ProcessService.WriteStdin": func(ctx context.Context) error { _, err := r.WriteStdin(ctx, &v1.WriteStdinRequest{}); return err },
		"ProcessService.ResizeProcess": func(ctx context.Context) error {
			_, err := r.ResizeProcess(ctx, &v1.ResizeProcessRequest{})
			return err
		},
		"ProcessService.StreamProcess": func(ctx context.Context) error {
			return r.StreamProcess(ctx, &v1.StreamProcessRequest{}, nil)
		},
		"FileService.ReadFile": func(ctx context.Context) error { return r.ReadFile(ctx, &v1.ReadFileRequest{Id: "x", Path: "y"}, nil) },
		"FileService.WriteFile": func(ctx context.Context) error {
			_, err := r.WriteFile(ctx, &v1.WriteFileRequest{Id: "x", Path: "y"}, nil)
			return err
		},
		"FileService.ReadArchive": func(ctx context.Context) error {
			return r.ReadArchive(ctx, &v1.ReadArchiveRequest{Id: "x"}, nil, nil)
		},
		"FileService.WriteArchive": func(ctx context.Context) error { _, err := r.WriteArchive(ctx, "x", "y", "", nil); return err },
		"FileService.StatFile":     func(ctx context.Context) error { _, err := r.StatFile(ctx, &v1.StatFileRequest{}); return err },
		"FileService.ListFiles":    func(ctx context.Context) error { _, err := r.ListFiles(ctx, &v1.ListFilesRequest{}); return err },
		"FileService.SignFile":     func(ctx context.Context) error { _, err := r.SignFile(ctx, &v1.SignFileRequest{}); return err },
		"FileService.WatchFiles":   func(ctx context.Context) error { return r.WatchFiles(ctx, &v1.WatchFilesRequest{}, nil) },
		"FileService.CreateWatcher": func(ctx context.Context) error {
			_, err := r.CreateWatcher(ctx, &v1.CreateWatcherRequest{})
			return err
		},
		"FileService.GetWatcherEvents": func(ctx context.Context) error {
			_, err := r.GetWatcherEvents(ctx, &v1.GetWatcherEventsRequest{})
			return err
		},
		"FileService.RemoveWatcher": func(ctx context.Context) error {
			_, err := r.RemoveWatcher(ctx, &v1.RemoveWatcherRequest{})
			return err
		},
		"FileService.MakeDirectory": func(ctx context.Context) error {
			_, err := r.MakeDirectory(ctx, &v1.MakeDirectoryRequest{})
			return err
		},
		"FileService.MoveFile":       func(ctx context.Context) error { _, err := r.MoveFile(ctx, &v1.MoveFileRequest{}); return err },
		"FileService.RemoveFile":     func(ctx context.Context) error { _, err := r.RemoveFile(ctx, &v1.RemoveFileRequest{}); return err },
		"RunService.CreateRun":       func(ctx context.Context) error { _, err := r.CreateRun(ctx, &v1.CreateRunRequest{}); return err },
		"RunService.StartRun":        func(ctx context.Context) error { _, err := r.StartRun(ctx, &v1.StartRunRequest{}); return err },
		"RunService.GetRun":          func(ctx context.Context) error { _, err := r.GetRun(ctx, &v1.GetRunRequest{}); return err },
		"RunService.CancelRun":       func(ctx context.Context) error { _, err := r.CancelRun(ctx, &v1.CancelRunRequest{}); return err },
		"RunService.ReadArtifact":    func(ctx context.Context) error { _, _, err := r.OpenArtifact(ctx, "x", "y"); return err },
		"RunService.WatchRun":        func(ctx context.Context) error { return r.WatchRun(ctx, &v1.WatchRunRequest{}, nil) },
		"SystemService.ListBackends": func(ctx context.Context) error { _, err := r.ListBackends(ctx, &v1.ListBackendsRequest{}); return err },
		"SystemService.ListTemplates": func(ctx context.Context) error {
			_, err := r.ListTemplates(ctx, &v1.ListTemplatesRequest{})
			return err
		},
		"SystemService.BuildTemplate": func(ctx context.Context) error { return r.BuildTemplate(ctx, &v1.BuildTemplateRequest{}, nil) },
		"SystemService.RemoveTemplate": func(ctx context.Context) error {
			_, err := r.RemoveTemplate(ctx, &v1.RemoveTemplateRequest{})
			return err
		},
		"SystemService.GetPool":  func(ctx context.Context) error { _, err := r.GetPool(ctx, &v1.GetPoolRequest{}); return err },
		"SystemService.GetQuota": func(ctx context.Context) error { _, err := r.GetQuota(ctx, &v1.GetQuotaRequest{}); return err },
		"SystemService.UploadArchive": func(ctx context.Context) error {
			_, err := r.UploadArchive(ctx, strings.NewReader(""))
			return err
		},
		"SystemService.CollectTemplates": func(ctx context.Context) error {
			_, err := r.CollectTemplates(ctx, &v1.CollectTemplatesRequest{})
			return err
		},
		"SystemService.GetVersion": func(ctx context.Context) error { _, err := r.GetVersion(ctx, &v1.GetVersionRequest{}); return err },
		"KeyService.CreateKey":     func(ctx context.Context) error { _, err := r.CreateKey(ctx, &v1.CreateKeyRequest{}); return err },
		"KeyService.ListKeys":      func(ctx context.Context) error { _, err := r.ListKeys(ctx, &v1.ListKeysRequest{}); return err },
		"AuditService.GetCheckpoint": func(ctx context.Context) error {
			_, err := r.GetCheckpoint(ctx, &v1.GetCheckpointRequest{})
			return err
		},
		"AuditService.ListEntries": func(ctx context.Context) error {
			_, err := r.ListEntries(ctx, &v1.ListEntriesRequest{})
			return err
		},
		"AuditService.GetProof": func(ctx context.Context) error {
			_, err := r.GetProof(ctx, &v1.GetProofRequest{})
			return err
		},
		"AuditService.ExportEvidence": func(ctx context.Context) error {
			_, err := r.ExportEvidence(ctx, &v1.ExportEvidenceRequest{})
			return err
		},
		"AuditService.WatchEntries": func(ctx context.Context) error { return r.WatchEntries(ctx, &v1.WatchEntriesRequest{}, nil) },
		"KeyService.DeleteKey":      func(ctx context.Context) error { _, err := r.DeleteKey(ctx, &v1.DeleteKeyRequest{}); return err },
	}
	for method, a := range r.access {
		call, ok := calls[method]
		if !ok {
			t.Errorf("%s is in the proto and not here", method)
			continue
		}
		if err := call(nobody); sandbox.KindOf(err) != sandbox.KindUnauthenticated {
			t.Errorf("%s by nobody: %v", method, err)
		}
		p, _ := auth.PrincipalFrom(viewer)
		if err := call(viewer); (sandbox.KindOf(err) == sandbox.KindDenied) == p.Can(auth.Scope(a.GetScope())) {
			t.Errorf("%s by a viewer, who needs %s: %v", method, a.GetScope(), err)
		}
	}
	check(t, r.log.Close())
	denied := []string{}
	for e, err := range audit.Scan(filepath.Join(r.dir, "audit"), 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Record.Outcome == sandbox.OutcomeDenied {
			denied = append(denied, e.Record.Action)
		}
	}
	if !slices.Contains(denied, "sandbox.create") || !slices.Contains(denied, "process.exec") || !slices.Contains(denied, "key.create") {
		t.Errorf("refusals in the evidence: %q", denied)
	}
}

func TestIdempotency(t *testing.T) {
	r := newRig(t)
	ctx := WithIdempotencyKey(as(t.Context(), "default", auth.Developer), "key-1")
	req := &v1.CreateSandboxRequest{Name: "once", Metadata: map[string]string{"a": "1", "b": "2", "c": "3"}}
	var wg sync.WaitGroup
	var mu sync.Mutex
	ids := map[string]int{}
	for range 8 {
		wg.Go(func() {
			sb, err := r.CreateSandbox(ctx, proto.CloneOf(req))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[sb.Id]++
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Errorf("made %v", ids)
	}
	_, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Name: "another"})
	wantKind(t, err, sandbox.KindConflict)
	if other, err := r.CreateSandbox(WithIdempotencyKey(as(t.Context(), "tenant-b", auth.Developer), "key-1"), &v1.CreateSandboxRequest{}); err != nil || ids[other.Id] != 0 {
		t.Errorf("another tenant's key: %v, %v", other, err)
	}
	// A request that failed may be repeated under its key.
	key2 := WithIdempotencyKey(as(t.Context(), "default", auth.Developer), "key-2")
	_, err = r.CreateSandbox(key2, req)
	wantKind(t, err, sandbox.KindExists)
	for id := range ids {
		if _, err := r.DestroySandbox(as(t.Context(), "default", auth.Developer), &v1.DestroySandboxRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
		if sb, err := r.CreateSandbox(key2, req); err != nil || sb.Id == id {
			t.Errorf("repeated after a failure: %v, %v", sb, err)
		}
		if sb, err := r.CreateSandbox(ctx, req); err != nil || sb.Id != id || sb.State != "ended" {
			t.Errorf("repeated after its end: %v, %v", sb, err)
		}
	}
	run := &v1.CreateRunRequest{Program: &v1.RunProgram{Command: proto.String("true")}}
	rctx := WithIdempotencyKey(as(t.Context(), "default", auth.Developer), "key-4")
	a, err := r.CreateRun(rctx, run)
	b, err2 := r.CreateRun(rctx, run)
	if err != nil || err2 != nil || a.Id != b.Id {
		t.Errorf("runs: %v %v, %v %v", a, b, err, err2)
	}
	_, err = r.CreateSandbox(rctx, &v1.CreateSandboxRequest{})
	wantKind(t, err, sandbox.KindConflict)
}

// A caller that loses the connection finds the sandbox by asking again.
func TestIdempotentCreateOutlivesItsCaller(t *testing.T) {
	r := newRigOver(t, sim.New(sim.Config{Boot: 300 * time.Millisecond}))
	dev := as(t.Context(), "default", auth.Developer)
	req := &v1.CreateSandboxRequest{Metadata: map[string]string{"x": "y"}}
	for _, key := range []string{"", "key"} {
		gone, cancel := context.WithTimeout(WithIdempotencyKey(dev, key), 100*time.Millisecond)
		_, err := r.CreateSandbox(gone, req)
		cancel()
		if (err == nil) != (key != "") {
			t.Errorf("key %q: %v", key, err)
		}
	}
	sb, err := r.CreateSandbox(WithIdempotencyKey(dev, "key"), req)
	if err != nil || sb.State != "running" {
		t.Errorf("%v, %v", sb, err)
	}
	list, err := r.ListSandboxes(dev, &v1.ListSandboxesRequest{Metadata: map[string]string{"x": "y"}})
	if err != nil || len(list.Sandboxes) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}
