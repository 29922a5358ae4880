package orchestrator

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func mustRun(t *testing.T, o *Orchestrator, req RunRequest) Run {
	t.Helper()
	r, err := o.CreateRun(t.Context(), alice, req)
	if err != nil {
		t.Fatal(err)
	}
	return finished(t, o, r.ID)
}

func finished(t *testing.T, o *Orchestrator, id sandbox.RunID) Run {
	t.Helper()
	r, err := o.GetRun(t.Context(), alice.Tenant, string(id), 20*time.Second)
	if err != nil || r.State != store.RunEnded || r.Report.Phase != PhaseEnded {
		t.Fatalf("%+v, %v", r, err)
	}
	// What is kept must be what was answered.
	rec, err := o.Store.Tenant(alice.Tenant).Run(t.Context(), id)
	if err != nil || rec.State != store.RunEnded || rec.Reason != r.Reason || rec.ExitCode != r.ExitCode || len(rec.Artifacts) > len(r.Report.Artifacts) {
		t.Errorf("stored %+v, %v", rec, err)
	}
	return r
}

func TestRun(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	req := RunRequest{Exec: sh("cat; cat in/data; echo problem >&2; mkdir out; echo one > out/a; echo three > b; exit 4"),
		Stdin: []byte("typed\n"), Inputs: []Input{{Path: "in/data", Data: []byte("given\n"), Mode: 0o644}},
		Artifacts: []string{"out", "b", "missing", "/tmp/../home/user/b"}, Spec: []byte(`{"x":1}`)}
	r := mustRun(t, o, req)
	if r.ExitCode != 4 || r.Reason != sandbox.ReasonDone || r.Report.Error != nil || r.Report.Backend != "sim" || r.Report.Receipt == nil || !r.Report.Receipt.Clean ||
		r.Timings["create"] <= 0 || r.Timings["execute"] <= 0 || r.Timings["destroy"] <= 0 || r.Report.First == 0 || r.Report.Last <= r.Report.First {
		t.Errorf("%+v", r)
	}
	stdout, stderr, err := o.RunOutput(r.ID)
	if err != nil || string(stdout) != "typed\ngiven\n" || string(stderr) != "problem\n" {
		t.Errorf("%q, %q, %v", stdout, stderr, err)
	}
	var got []string
	for _, a := range r.Report.Artifacts {
		got = append(got, a.Path+" "+a.Error)
	}
	if want := []string{"out/a ", "b ", "missing not found", "home/user/b "}; !slices.Equal(got, want) {
		t.Errorf("artifacts %q, want %q", got, want)
	}
	f, a, err := o.OpenArtifact(t.Context(), alice, string(r.ID), "out/a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	f.Close()
	if err != nil || string(b) != "one\n" || a.Size != 4 || a.SHA256 != "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806" {
		t.Errorf("%q, %v, %+v", b, err, a)
	}
	for _, p := range []string{"missing", "nothing", "../stdout", "out", "", "/", "out/../../stdout"} {
		_, _, err := o.OpenArtifact(t.Context(), alice, string(r.ID), p)
		wantKind(t, err, sandbox.KindNotFound)
	}
	sb, err := o.Get(t.Context(), alice.Tenant, string(r.Sandbox))
	if err != nil || sb.State != store.Ended || sb.Reason != sandbox.ReasonDone {
		t.Errorf("%+v, %v", sb, err)
	}
	if got := w.audit.actions(r.Sandbox); got[0] != "run.create allowed" || got[1] != "sandbox.create allowed" || got[len(got)-1] != "sandbox.receipt done" {
		t.Errorf("evidence %q", got)
	}
}

func TestRunEnds(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	second, missing := time.Second, "no-such-program"
	for name, c := range map[string]struct {
		req    RunRequest
		code   int
		reason sandbox.Reason
		kind   sandbox.Kind // of its error
	}{
		"its own way":      {RunRequest{Exec: sh("exit 0")}, 0, sandbox.ReasonDone, ""},
		"exec's timeout":   {RunRequest{Exec: within(verb("sleep", "60s"), 100*time.Millisecond)}, 124, sandbox.ReasonTimeout, ""},
		"whole timeout":    {RunRequest{Sandbox: CreateRequest{Timeout: &second}, Exec: verb("sleep", "60s")}, 124, sandbox.ReasonTimeout, ""},
		"timeout of wait":  {RunRequest{Sandbox: CreateRequest{Timeout: &second}, Exec: sh("true"), Await: true}, 124, sandbox.ReasonTimeout, ""},
		"memory":           {RunRequest{Sandbox: CreateRequest{Limits: sandbox.Limits{Memory: 64 << 20}}, Exec: verb("alloc", "1000000000")}, 137, sandbox.ReasonMemory, ""},
		"missing program":  {RunRequest{Exec: ExecRequest{Command: &missing}}, 125, sandbox.ReasonCrashed, sandbox.KindNotFound},
		"impossible input": {RunRequest{Exec: sh("true"), Inputs: []Input{{Path: "/proc/x/y", Data: []byte("x")}}}, 125, sandbox.ReasonCrashed, "any"},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustRun(t, o, c.req)
			if r.ExitCode != c.code || r.Reason != c.reason || (r.Report.Error == nil) != (c.kind == "") {
				t.Errorf("%+v %+v", r, r.Report.Error)
			}
			if c.kind != "" && c.kind != "any" && r.Report.Error.Kind != c.kind {
				t.Errorf("%+v", r.Report.Error)
			}
			if r.Report.Receipt == nil || !r.Report.Receipt.Clean {
				t.Errorf("receipt %+v", r.Report.Receipt)
			}
		})
	}
}

func TestRunRefuses(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	for name, c := range map[string]struct {
		req  RunRequest
		kind sandbox.Kind
	}{
		"limits":   {RunRequest{Sandbox: CreateRequest{Limits: sandbox.Limits{Memory: 1}}, Exec: sh("true")}, sandbox.KindInvalid},
		"template": {RunRequest{Sandbox: CreateRequest{Template: "nope"}, Exec: sh("true")}, sandbox.KindNotFound},
		"pack":     {RunRequest{Exec: code("node", "1")}, sandbox.KindInvalid},
		"nothing":  {RunRequest{}, sandbox.KindInvalid},
		"root":     {RunRequest{Exec: ExecRequest{Command: new(string), User: "root"}}, sandbox.KindInvalid},
	} {
		_, err := o.CreateRun(t.Context(), alice, c.req)
		if sandbox.KindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	if recs, _, err := w.store.Tenant(alice.Tenant).ListRuns(t.Context(), store.Page{}); err != nil || len(recs) != 0 {
		t.Errorf("records: %v, %v", recs, err)
	}
}

func TestRunAwaitsInputs(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := o.CreateRun(ctx, alice, RunRequest{Exec: sh("cat late"), Await: true})
	if err != nil {
		t.Fatal(err)
	}
	cancel() // the caller goes away; the run does not
	eventually(t, "it waits", func() bool {
		r, err := o.GetRun(t.Context(), alice.Tenant, string(r.ID), 0)
		return err == nil && r.Report.Phase == PhaseAwaiting
	})
	if _, err := o.WriteFile(t.Context(), alice, string(r.Sandbox), "late", guest.WriteOptions{}, strings.NewReader("here")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if _, err := o.StartRun(t.Context(), alice, string(r.ID)); err != nil {
			t.Fatal(err)
		}
	}
	done := finished(t, o, r.ID)
	if stdout, _, err := o.RunOutput(r.ID); err != nil || string(stdout) != "here" || done.ExitCode != 0 {
		t.Errorf("%q, %v, %+v", stdout, err, done)
	}
	_, err = o.StartRun(t.Context(), alice, string(r.ID))
	wantKind(t, err, sandbox.KindGone)
	now, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: verb("sleep", "60s")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.StartRun(t.Context(), alice, string(now.ID))
	wantKind(t, err, sandbox.KindConflict)
	eventually(t, "it runs", func() bool {
		r, err := o.GetRun(t.Context(), alice.Tenant, string(now.ID), 0)
		return err == nil && r.Report.Phase == PhaseRunning
	})
	cancelled, err := o.CancelRun(t.Context(), alice, string(now.ID))
	if err != nil || cancelled.Reason != sandbox.ReasonOperator || cancelled.ExitCode != 137 || cancelled.Report.Receipt == nil || !cancelled.Report.Receipt.Clean {
		t.Errorf("%+v, %v", cancelled, err)
	}
	again, err := o.CancelRun(t.Context(), alice, string(now.ID))
	if err != nil || !again.Ended.Equal(cancelled.Ended) {
		t.Errorf("%+v, %v", again, err)
	}
	if again, err := o.CancelRun(t.Context(), alice, string(r.ID)); err != nil || again.Reason != sandbox.ReasonDone {
		t.Errorf("a run that ended by itself: %+v, %v", again, err)
	}
}

func TestRunOutputIsBounded(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	r := mustRun(t, o, RunRequest{Exec: verb("out", "20000000")})
	stdout, _, err := o.RunOutput(r.ID)
	if err != nil || len(stdout) != maxKept || !r.Report.StdoutTruncated || r.Report.StderrTruncated || r.ExitCode != 0 {
		t.Errorf("%d bytes, %v, %+v", len(stdout), err, r)
	}
}

// A server that dies or is stopped before a run's program has started leaves the
// run lost, and nothing of it on the host.
func TestRunsEndWithTheDaemon(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	first := w.start()
	awaiting := func(o *Orchestrator) Run {
		r, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: verb("sleep", "3600s"), Await: true})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "it waits", func() bool {
			r, err := o.GetRun(t.Context(), alice.Tenant, string(r.ID), 0)
			return err == nil && r.Report.Phase == PhaseAwaiting
		})
		return r
	}
	stopped := awaiting(first)
	w.close(first)
	w.roots = &roots{}
	o := w.start()
	r := finished(t, o, stopped.ID)
	if r.Reason != sandbox.ReasonLost || !r.Report.Receipt.Clean {
		t.Errorf("%+v", r)
	}

	for _, point := range []string{"create/after-session", "exec/after-evidence"} {
		over := make(chan struct{})
		if !crashAt(point, func() {
			if _, err := o.CreateRun(context.Background(), alice, RunRequest{Exec: sh("true")}); err != nil {
				t.Error(err)
			}
			select {
			case <-over:
			case <-time.After(10 * time.Second): // longer than it takes to get there
			}
		}) {
			t.Fatal("the point was not hit")
		}
		close(over)
		w.abandon(o)
		unfinished, err := w.store.System().UnfinishedRuns(t.Context())
		if err != nil || len(unfinished) != 1 {
			t.Fatalf("%v, %v", unfinished, err)
		}
		o = w.start()
		if r := finished(t, o, unfinished[0].ID); r.Reason != sandbox.ReasonLost || r.ExitCode != 125 || r.Report.Error == nil || r.Report.Receipt == nil || !r.Report.Receipt.Clean {
			t.Errorf("%s: %+v", point, r)
		}
	}
	if list, err := w.sim.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// hostile is a guest whose listings lie.
type hostile struct {
	artifactSource
	names []string
}

func (h hostile) List(ctx context.Context, path string, o guest.ListOptions) ([]guest.FileInfo, bool, error) {
	var list []guest.FileInfo
	for _, n := range h.names {
		list = append(list, guest.FileInfo{Path: n, Mode: 0o644, Size: 1})
	}
	return list, false, nil
}

func (h hostile) ReadFile(ctx context.Context, path string, o guest.ReadOptions) (*guest.FileReader, error) {
	return h.artifactSource.ReadFile(ctx, "content", o) // whatever is asked for exists
}

func TestArtifactsStayInside(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	if _, err := o.WriteFile(t.Context(), alice, string(sb.ID), "content", guest.WriteOptions{}, strings.NewReader("evil")); err != nil {
		t.Fatal(err)
	}
	s, err := o.find(alice.Tenant, string(sb.ID)).session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	outer := t.TempDir()
	dir := filepath.Join(outer, "run", artifactDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outer, filepath.Join(dir, "link")); err != nil { // even if one got there
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	good := []string{"fine", "sub/fine", "..fine", "\u00e9"}
	names := append([]string{"../up", "a/../../up", "/abs", "", ".", "..", "a//b", "a/./b", "a/", "nul\x00", "new\nline", `back\slash`,
		strings.Repeat("x", 256), strings.Repeat("d/", 3000) + "x", "link/escaped", "\xff", "fine", "fine/below"}, good...)
	c := &collector{from: hostile{s, names}, to: root, left: maxArtifactTotal, tell: func(Artifact) {}}
	c.tree(t.Context(), "dir", "")
	collected := []string{}
	for _, a := range c.list {
		if a.Error == "" {
			collected = append(collected, a.Path)
		}
		if strings.ContainsAny(a.Path, "\x00\n") {
			t.Errorf("listed as %q", a.Path)
		}
	}
	if want := []string{"fine", "sub/fine", "..fine", "\u00e9"}; !slices.Equal(collected, want) {
		t.Errorf("collected %q, want %q", collected, want)
	}
	if len(c.list) != len(names) {
		t.Errorf("%d of %d listed", len(c.list), len(names))
	}
	if _, err := o.WriteFile(t.Context(), alice, string(sb.ID), "odd\nname", guest.WriteOptions{}, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	c.list = nil
	c.collect(t.Context(), "odd\nname") // a caller's own path is no better
	if len(c.list) != 1 || c.list[0].Error == "" || c.list[0].Path != "odd?name" {
		t.Errorf("%+v", c.list)
	}
	var files []string
	err = filepath.WalkDir(outer, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(dir, p)
			files = append(files, rel)
		}
		return err
	})
	slices.Sort(files)
	if want := []string{"..fine", "fine", "sub/fine", "\u00e9"}; err != nil || !slices.Equal(files, want) {
		t.Errorf("on the host: %q, %v", files, err)
	}
}

func TestArtifactsAreBounded(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	if _, err := o.WriteFile(t.Context(), alice, string(sb.ID), "content", guest.WriteOptions{}, strings.NewReader(strings.Repeat("x", 1000))); err != nil {
		t.Fatal(err)
	}
	s, err := o.find(alice.Tenant, string(sb.ID)).session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var names []string
	for i := range 3 * maxArtifacts {
		names = append(names, "n"+string(rune('a'+i%26))+"/"+strings.Repeat("y", i/26+1))
	}
	c := &collector{from: hostile{s, names}, to: root, left: 2500, tell: func(Artifact) {}}
	c.tree(t.Context(), "dir", "")
	if len(c.list) != maxArtifacts || c.left != 500 || !strings.Contains(c.list[2].Error, "together") || !strings.Contains(c.list[maxArtifacts-1].Error, "more than") {
		t.Errorf("%d entries, %d bytes left, third %+v, last %+v", len(c.list), c.left, c.list[2], c.list[len(c.list)-1])
	}
	if _, err := os.Stat(filepath.Join(dir, "nc", "y")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was too large is still there: %v", err)
	}
}

// What lies too deep to be listed is not left out in silence.
func TestArtifactsTooDeep(t *testing.T) {
	deep := strings.TrimSuffix(strings.Repeat("d/", maxArtifactDepth), "/")
	c := &collector{from: nested{hostile{}, deep}, left: maxArtifactTotal, tell: func(Artifact) {}}
	c.tree(t.Context(), "out", "out")
	if len(c.list) != 1 || !strings.Contains(c.list[0].Error, "deep") {
		t.Errorf("%+v", c.list)
	}
}

// nested is a guest with directories within each other down to path.
type nested struct {
	hostile
	path string
}

func (n nested) List(ctx context.Context, _ string, o guest.ListOptions) (list []guest.FileInfo, more bool, err error) {
	for i, r := range n.path + "/" {
		if r == '/' {
			list = append(list, guest.FileInfo{Path: n.path[:i], Mode: fs.ModeDir | 0o755})
		}
	}
	return list, false, nil
}
