package service

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestEvents(t *testing.T) {
	r := newRig(t)
	ctx := as(t.Context(), "default", auth.Developer)
	sb := r.create(ctx, &v1.CreateSandboxRequest{})
	var mu sync.Mutex
	var live []*v1.Event
	var wg sync.WaitGroup
	wg.Go(func() {
		check(t, r.WatchEvents(ctx, &v1.WatchEventsRequest{Id: sb.Id}, func(e *v1.Event) error {
			mu.Lock()
			defer mu.Unlock()
			live = append(live, e)
			return nil
		}))
	})
	r.exec(ctx, &v1.ExecRequest{Id: sb.Id, Code: proto.String("cat; exit 2"), LanguagePack: "shell", Stdin: "\u20ac\n"})
	present := 0
	check(t, r.WatchEvents(ctx, &v1.WatchEventsRequest{Id: sb.Id, NoFollow: true}, func(*v1.Event) error { present++; return nil }))
	if present < 5 {
		t.Errorf("%d events so far", present)
	}
	if _, err := r.DestroySandbox(ctx, &v1.DestroySandboxRequest{Id: sb.Id}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	var text string
	types := []string{}
	for i, e := range live {
		if e.Id != int64(i+1) || e.Time == nil {
			t.Errorf("event %d: %v", i, e)
		}
		types = append(types, strings.Trim(e.Type+":"+e.State, ":"))
		switch e.Type {
		case "stdout":
			text += e.Text
		case "exit":
			if e.GetExitCode() != 2 || e.Reason != "done" || e.Pid == 0 {
				t.Errorf("%v", e)
			}
		}
	}
	want := []string{"state:creating", "state:running", "started", "stdout", "exit", "state:stopping", "receipt", "state:ended"}
	if text != "\u20ac\n" || !slices.Equal(types, want) || live[len(live)-1].Reason != "operator" {
		t.Errorf("%q %q", types, text)
	}
	var after []*v1.Event // also after death, and from where one was
	check(t, r.WatchEvents(ctx, &v1.WatchEventsRequest{Id: sb.Id, AfterId: 5}, func(e *v1.Event) error { after = append(after, e); return nil }))
	if len(after) != 3 || !proto.Equal(after[0], live[5]) {
		t.Errorf("%v", after)
	}
	err := r.WatchEvents(as(t.Context(), "tenant-b", auth.Owner), &v1.WatchEventsRequest{Id: sb.Id}, func(*v1.Event) error { t.Error("leaked"); return nil })
	wantKind(t, err, sandbox.KindNotFound)
}

func TestFiles(t *testing.T) {
	r := newRig(t)
	ctx := as(t.Context(), "default", auth.Developer)
	sb := r.create(ctx, &v1.CreateSandboxRequest{})
	content := bytes.Repeat([]byte("0123456789abcdef"), 40_000)
	info, err := r.WriteFile(ctx, &v1.WriteFileRequest{Id: sb.Id, Path: "d/f", Mode: "0600"}, bytes.NewReader(content))
	if err != nil || info.Mode != "600" || info.Size != int64(len(content)) || info.Type != "file" || info.Name != "f" {
		t.Fatalf("%v, %v", info, err)
	}
	var got []byte
	first := true
	check(t, r.ReadFile(ctx, &v1.ReadFileRequest{Id: sb.Id, Path: "d/f"}, func(c *v1.FileChunk) error {
		if first != (c.Info != nil) {
			t.Errorf("info in %v", c.Info)
		}
		first = false
		got = append(got, c.Data...)
		return nil
	}))
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back", len(got))
	}
	f, info, err := r.OpenFile(ctx, sb.Id, "d/f", "", 10, 3)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	check(t, f.Close())
	if err != nil || string(b) != "abc" || info.Size != int64(len(content)) {
		t.Errorf("%q, %v, %v", b, err, info)
	}
	dir, err := r.MakeDirectory(ctx, &v1.MakeDirectoryRequest{Id: sb.Id, Path: "x/y"})
	if err != nil || dir.Type != "directory" {
		t.Errorf("%v, %v", dir, err)
	}
	if moved, err := r.MoveFile(ctx, &v1.MoveFileRequest{Id: sb.Id, From: "d/f", To: "x/g"}); err != nil || moved.Name != "g" {
		t.Errorf("%v, %v", moved, err)
	}
	if list, err := r.ListFiles(ctx, &v1.ListFilesRequest{Id: sb.Id, Path: "x"}); err != nil || len(list.Files) != 2 || list.Truncated {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := r.RemoveFile(ctx, &v1.RemoveFileRequest{Id: sb.Id, Path: "x", Recursive: true}); err != nil {
		t.Error(err)
	}
	_, err = r.StatFile(ctx, &v1.StatFileRequest{Id: sb.Id, Path: "x"})
	wantKind(t, err, sandbox.KindNotFound)
	for _, mode := range []string{"9", "4755", "-1", "rw", "1777"} {
		_, err := r.WriteFile(ctx, &v1.WriteFileRequest{Id: sb.Id, Path: "f", Mode: mode}, strings.NewReader("x"))
		wantKind(t, err, sandbox.KindInvalid)
	}
	_, _, err = r.OpenFile(ctx, sb.Id, "", "", 0, 0)
	wantKind(t, err, sandbox.KindInvalid)
}

func TestRuns(t *testing.T) {
	r := newRig(t)
	ctx := as(t.Context(), "default", auth.Developer)
	req := &v1.CreateRunRequest{Sandbox: &v1.CreateSandboxRequest{Env: map[string]string{"SECRET": "hunter2"}},
		Program:   &v1.RunProgram{Code: proto.String("cat in; echo out > art; exit 3"), LanguagePack: "shell", Env: map[string]string{"TOKEN": "hunter2"}, Stdin: "hunter2"},
		Inputs:    []*v1.InputFile{{Path: "in", Text: "given"}},
		Artifacts: []string{"art", "missing"}}
	run, err := r.CreateRun(ctx, req)
	if err != nil || run.State == "ended" || run.SandboxId == "" {
		t.Fatalf("%v, %v", run, err)
	}
	var types []string
	check(t, r.WatchRun(ctx, &v1.WatchRunRequest{Id: run.Id}, func(e *v1.Event) error { types = append(types, e.Type); return nil }))
	done, err := r.GetRun(ctx, &v1.GetRunRequest{Id: run.Id, WaitMs: 10_000})
	if err != nil || done.State != "ended" || done.ExitCode != 3 || done.Reason != "done" || done.Stdout != "given" || done.Error != nil || !done.Receipt.GetClean() ||
		done.TimingsMs.Create <= 0 || done.Audit.First == 0 || done.Audit.Last <= done.Audit.First || done.Backend != "sim" || done.EndedAt == nil {
		t.Errorf("%v, %v", done, err)
	}
	if !slices.Contains(types, "artifact") || types[len(types)-1] != "state" {
		t.Errorf("events %q", types)
	}
	if len(done.Artifacts) != 2 || done.Artifacts[0].Path != "art" || done.Artifacts[0].Size != 4 || done.Artifacts[1].Error == "" {
		t.Errorf("%v", done.Artifacts)
	}
	f, a, err := r.OpenArtifact(ctx, run.Id, "art")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	check(t, f.Close())
	if _, ok := f.(io.Seeker); !ok || err != nil || string(b) != "out\n" || a.Sha256 == "" {
		t.Errorf("%q, %v, %v", b, err, a)
	}
	rec, err := r.Store.Tenant("default").Run(ctx, sandbox.RunID(run.Id))
	if err != nil || !bytes.Contains(rec.Spec, []byte("TOKEN")) || bytes.Contains(rec.Spec, []byte("hunter2")) || bytes.Contains(rec.Spec, []byte("given")) {
		t.Errorf("kept: %s, %v", rec.Spec, err)
	}
	_, err = r.GetRun(as(t.Context(), "tenant-b", auth.Owner), &v1.GetRunRequest{Id: run.Id})
	wantKind(t, err, sandbox.KindNotFound)
	_, _, err = r.OpenArtifact(as(t.Context(), "tenant-b", auth.Owner), run.Id, "art")
	wantKind(t, err, sandbox.KindNotFound)
	_, err = r.CreateRun(ctx, &v1.CreateRunRequest{})
	wantKind(t, err, sandbox.KindInvalid)
}

func TestBadRequests(t *testing.T) {
	r := newRig(t)
	ctx := as(t.Context(), "default", auth.Developer)
	for name, req := range map[string]*v1.CreateSandboxRequest{
		"isolation":      {MinIsolation: "total"},
		"negative time":  {TimeoutMs: proto.Int64(-1)},
		"endless time":   {IdleTimeoutMs: proto.Int64(1 << 62)},
		"zero memory":    {Limits: &v1.Limits{MemoryBytes: proto.Int64(0)}},
		"little memory":  {Limits: &v1.Limits{MemoryBytes: proto.Int64(1)}},
		"absurd memory":  {Limits: &v1.Limits{MemoryBytes: proto.Int64(1 << 60)}},
		"NaN cpus":       {Limits: &v1.Limits{Cpus: proto.Float64(nan())}},
		"absurd pids":    {Limits: &v1.Limits{Pids: proto.Int64(1 << 40)}},
		"negative disk":  {Limits: &v1.Limits{DiskBytes: proto.Int64(-1)}},
		"unknown server": {Backend: "chroot"},
	} {
		if _, err := r.CreateSandbox(ctx, req); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := r.GetSandbox(ctx, &v1.GetSandboxRequest{Id: "nothing"})
	if e := wantKind(t, err, sandbox.KindNotFound); e.Hint == "" {
		t.Errorf("%v", err)
	}
	sb := r.create(ctx, &v1.CreateSandboxRequest{})
	for name, req := range map[string]*v1.ExecRequest{
		"both inputs": {Id: sb.Id, Code: proto.String("x"), Stdin: "a", StdinData: []byte("b")},
		"no program":  {Id: sb.Id},
		"time":        {Id: sb.Id, Code: proto.String("x"), TimeoutMs: proto.Int64(1 << 60)},
	} {
		if err := r.Exec(ctx, req, func(*v1.ExecEvent) error { return nil }); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = r.ListSandboxes(ctx, &v1.ListSandboxesRequest{State: "dreaming"})
	wantKind(t, err, sandbox.KindInvalid)
}

func nan() float64 { z := 0.0; return z / z }

func TestKeys(t *testing.T) {
	r := newRig(t)
	owner, admin := as(t.Context(), "default", auth.Owner), as(t.Context(), "default", auth.Admin)
	made, err := r.CreateKey(owner, &v1.CreateKeyRequest{Name: "ci", TtlMs: 3_600_000})
	if err != nil || made.Secret == "" || made.Key.Role != "developer" || made.Key.ExpiresAt == nil {
		t.Fatalf("%v, %v", made, err)
	}
	_, err = r.CreateKey(admin, &v1.CreateKeyRequest{Role: "owner"})
	wantKind(t, err, sandbox.KindDenied)
	list, err := r.ListKeys(owner, &v1.ListKeysRequest{})
	if err != nil || len(list.Keys) != 1 || list.Keys[0].Id != made.Key.Id {
		t.Errorf("%v, %v", list, err)
	}
	_, err = r.DeleteKey(as(t.Context(), "tenant-b", auth.Owner), &v1.DeleteKeyRequest{Id: made.Key.Id})
	wantKind(t, err, sandbox.KindNotFound)
	if _, err := r.DeleteKey(owner, &v1.DeleteKeyRequest{Id: made.Key.Id}); err != nil {
		t.Error(err)
	}
	if list, err := r.ListKeys(owner, &v1.ListKeysRequest{}); err != nil || len(list.Keys) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

func TestSystem(t *testing.T) {
	r := newRig(t)
	ctx := as(t.Context(), "default", auth.Owner)
	b, err := r.ListBackends(ctx, &v1.ListBackendsRequest{})
	if err != nil || len(b.Backends) != 1 || b.Backends[0].Name != "sim" || b.Backends[0].Isolation != "none" || b.Auto != "" {
		t.Errorf("%v, %v", b, err)
	}
	l, err := r.ListTemplates(ctx, &v1.ListTemplatesRequest{})
	var states []string
	for _, tp := range l.GetTemplates() {
		states = append(states, tp.Name+":"+tp.State)
	}
	if want := []string{"host:built", ":damaged", "python:available", "node:available", "shell:available"}; err != nil || !slices.Equal(states, want) {
		t.Errorf("%q, %v", states, err)
	}
	var got []*v1.BuildTemplateEvent
	check(t, r.BuildTemplate(ctx, &v1.BuildTemplateRequest{Name: "python"}, func(e *v1.BuildTemplateEvent) error { got = append(got, e); return nil }))
	if len(got) != 3 || got[0].GetProgress() == nil || got[2].GetTemplate().GetName() != "python" {
		t.Errorf("%v", got)
	}
	bad := errors.New("the reader went away")
	if err := r.BuildTemplate(ctx, &v1.BuildTemplateRequest{Name: "node"}, func(*v1.BuildTemplateEvent) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
	if _, err := r.RemoveTemplate(ctx, &v1.RemoveTemplateRequest{Name: "python"}); err != nil || !slices.Equal(r.templates.removed, []string{"python"}) {
		t.Errorf("%v, %v", err, r.templates.removed)
	}
	quota := func(name string) (q *v1.Quota) {
		t.Helper()
		resp, err := r.GetQuota(ctx, &v1.GetQuotaRequest{})
		if err != nil || len(resp.Quotas) != len(orchestrator.Resources) {
			t.Fatalf("%v, %v", resp, err)
		}
		for _, q = range resp.Quotas {
			if q.Name == name {
				return q
			}
		}
		return nil
	}
	if q := quota("sandboxes"); q.GetUnit() != "count" || q.GetLimit() != 200 || q.GetDescription() == "" {
		t.Errorf("%v", q)
	}
	if q := quota("memory"); q.GetUnit() != "bytes" || q.Limit != nil {
		t.Errorf("%v", q)
	}
	if v, err := r.GetVersion(ctx, &v1.GetVersionRequest{}); err != nil || v.Version != "1.2.3" {
		t.Errorf("%v, %v", v, err)
	}
}
