package chaos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// scenario is one operation as a trial does it.
type scenario struct {
	// before makes, with a server, what the operation needs.
	before func()
	// act does the operation and promises what is acknowledged. It returns when
	// the operation is over or the server is; that the server died is no error.
	act func()
	// after checks, with the next server, what must hold whether or not the
	// operation was acknowledged.
	after func()
	// starts says that act starts the server itself.
	starts bool
}

// operations are what the matrix kills a server in. Each must reach failpoints;
// which ones is found out by counting. Basic ones are part of most others.
var operations = []struct {
	name  string
	of    func(*trial) scenario
	basic bool
}{
	{"create", creates, true},
	{"create once", createsOnce, false},
	{"exec", execs, true},
	{"paused stream", pausesStream, false},
	{"large output", printsMuch, false},
	{"write a file", writes, false},
	{"unpack an archive", unpacks, false},
	{"turn of a context", evals, false},
	{"pause", pauses, false},
	{"resume", resumes, false},
	{"resume into a place", resumesAhead, false},
	{"pause with a network", pausesWired, false},
	{"resume with a network", resumesWired, false},
	{"snapshot", snapshots, false},
	{"create of a snapshot", forks, false},
	{"fork", splits, false},
	{"fork once", splitsOnce, false},
	{"create of a snapshot with a network", forksWired, false},
	{"destroy", destroys, true},
	{"timeout", timesOut, false},
	{"death of a guest", dies, false},
	{"run", runs, false},
	{"key", changesKeys, false},
	{"secret", setsSecrets, false},
	{"template build", buildsTemplate, false},
	{"template layout", laysTemplate, false},
	{"template removal", removesTemplate, false},
	{"stop", stops, false},
	{"first start", startsFirst, false},
	{"adopt", adopts, false},
}

func (tr *trial) newSandbox(o client.CreateOptions) *client.Sandbox {
	tr.t.Helper()
	sb, err := tr.c.Create(tr.ctx, o)
	tr.must(err)
	return sb
}

// alive promises that a sandbox exists and works.
func (tr *trial) alive(id string) {
	tr.promise("sandbox "+id, func() error {
		sb, err := tr.c.Sandbox(id).Info(tr.ctx)
		if err == nil && sb.GetState() != "running" {
			err = fmt.Errorf("it is %s: %s, %s", sb.GetState(), sb.GetReason(), sb.GetDetail())
		}
		if err == nil {
			err = tr.works(id)
		}
		return err
	})
}

// content promises a file.
func (tr *trial) content(id, path, want string) {
	tr.promise("file "+path, func() error {
		if got, ok := tr.read(id, path); !ok || got != want {
			return fmt.Errorf("it has %d bytes, %d were written, the same: %v", len(got), len(want), got == want)
		}
		return nil
	})
}

// named is the one sandbox of that name that lives; more are an error.
func (tr *trial) named(name string) (id string) {
	for _, sb := range tr.sandboxes("") {
		if sb.GetName() == name {
			if id != "" {
				tr.errorf("%s and %s have one name", id, sb.GetId())
			}
			id = sb.GetId()
		}
	}
	return id
}

func creates(tr *trial) scenario {
	return scenario{
		act: func() {
			if sb, err := tr.c.Create(tr.ctx, client.CreateOptions{Name: tr.label}); err == nil {
				tr.alive(sb.ID())
			}
		},
		after: func() { tr.named(tr.label) },
	}
}

// createsOnce creates under an idempotency key, which the caller, not knowing
// what became of it, uses again.
func createsOnce(tr *trial) scenario {
	o := client.CreateOptions{Name: tr.label, IdempotencyKey: tr.label}
	again := func() (string, error) {
		sb, err := tr.c.Create(tr.ctx, o)
		if err != nil {
			return "", err
		}
		return sb.ID(), tr.works(sb.ID())
	}
	return scenario{
		act: func() {
			if sb, err := tr.c.Create(tr.ctx, o); err == nil {
				tr.alive(sb.ID())
				tr.promise("idempotency key", func() error {
					if id, err := again(); err != nil || id != sb.ID() {
						return fmt.Errorf("it answers %q, %v", id, err)
					}
					return nil
				})
			}
		},
		after: func() {
			first, err := again()
			second, err2 := again()
			if err != nil || err2 != nil || first != second || tr.named(tr.label) != first {
				tr.errorf("the key answers %q, %v, then %q, %v; %q lives", first, err, second, err2, tr.named(tr.label))
			}
		},
	}
}

// execs runs a program that leaves a mark. It runs once or not at all.
func execs(tr *trial) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() { sb = tr.newSandbox(client.CreateOptions{}) },
		act: func() {
			tr.alive(sb.ID())
			var out bytes.Buffer
			exit, err := sb.Exec(tr.served(), client.Command{Code: "open('ran','a').write('x')\nprint('done')"}, &out, nil)
			tr.kept(sb.ID(), &out)
			if err == nil && exit.Code == 0 {
				tr.content(sb.ID(), "ran", "x")
			}
		},
		after: func() {
			tr.continues(sb.ID(), "done\n")
			ran, there := tr.read(sb.ID(), "ran")
			if there && ran != "x" && ran != "" {
				tr.errorf("the program ran %d times", len(ran))
			}
			if there {
				tr.effects = append(tr.effects, effect{"process.exec", sb.ID()})
			}
		},
	}
}

// writes replaces a file by another.
func writes(tr *trial) scenario {
	var sb *client.Sandbox
	older, newer := strings.Repeat("older ", 200_000), strings.Repeat("newer, and longer ", 100_000)
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			_, err := sb.WriteFile(tr.ctx, "dir/file", strings.NewReader(older), 0o644)
			tr.must(err)
		},
		act: func() {
			tr.alive(sb.ID())
			if _, err := sb.WriteFile(tr.ctx, "dir/file", strings.NewReader(newer), 0o644); err == nil {
				tr.content(sb.ID(), "dir/file", newer)
			}
		},
		after: func() {
			got, _ := tr.read(sb.ID(), "dir/file")
			if got != older && got != newer {
				tr.errorf("the file is neither the older nor the newer, it has %d bytes", len(got))
			}
			if got == newer {
				tr.effects = append(tr.effects, effect{"file.write", sb.ID()})
			}
			if files, _, err := tr.c.Sandbox(sb.ID()).ListFiles(tr.ctx, "dir", 1); err != nil || len(files) != 1 {
				tr.errorf("beside the file there is %v, %v", files, err)
			}
		},
	}
}

// ended checks how a sandbox ended, which may take a moment.
func (tr *trial) ended(id string, reasons ...string) {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		sb, err := tr.c.Sandbox(id).Info(tr.ctx)
		if err == nil && sb.GetState() == "ended" {
			for _, r := range reasons {
				if r == sb.GetReason() {
					return
				}
			}
			tr.errorf("%s ended for %q, %s", id, sb.GetReason(), sb.GetDetail())
			return
		}
		if time.Now().After(deadline) {
			tr.errorf("%s has not ended: %v, %v", id, sb, err)
			return
		}
	}
}

func destroys(tr *trial) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() { sb = tr.newSandbox(client.CreateOptions{Name: tr.label}) },
		act: func() {
			res, err := sb.Destroy(tr.ctx)
			if err != nil {
				return
			}
			tr.promise("destroy", func() error {
				again, err := tr.c.Sandbox(sb.ID()).Destroy(tr.ctx)
				if err == nil && again.GetReceipt().String() != res.GetReceipt().String() {
					err = errors.New("the receipt is another one")
				}
				return err
			})
		},
		after: func() {
			if info, err := tr.c.Sandbox(sb.ID()).Info(tr.ctx); err != nil || info.GetState() == "ended" && info.GetReason() != "operator" {
				tr.errorf("%v, %v", info, err)
			}
		},
	}
}

func timesOut(tr *trial) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() { sb = tr.newSandbox(client.CreateOptions{Timeout: time.Second}) },
		act:    func() { tr.waitEnd(sb) },
		after:  func() { tr.ended(sb.ID(), "timeout") },
	}
}

// waitEnd returns when a sandbox has ended, or the server.
func (tr *trial) waitEnd(sb *client.Sandbox) {
	for tr.ctx.Err() == nil {
		info, err := sb.Info(tr.ctx)
		if err != nil || info.GetState() == "ended" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// dies kills a sandbox's sentry under the server.
func dies(tr *trial) scenario {
	var sb *client.Sandbox
	var pid int
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			pid = tr.processes("sentry")[0]
		},
		act: func() {
			tr.must(syscall.Kill(pid, syscall.SIGKILL))
			tr.waitEnd(sb)
		},
		after: func() { tr.ended(sb.ID(), "crashed", "lost") },
	}
}

// processes lists the processes that the one instance there is recorded.
func (tr *trial) processes(role string) (pids []int) {
	tr.t.Helper()
	files, _ := filepath.Glob(filepath.Join(tr.world.data, "instances", "in*", "processes"))
	if len(files) != 1 {
		tr.t.Fatalf("%s: instances: %v", tr.name, files)
	}
	b, err := os.ReadFile(files[0])
	tr.must(err)
	var r struct {
		Processes []struct {
			PID  int
			Role string
		}
	}
	tr.must(json.Unmarshal(b, &r))
	for _, p := range r.Processes {
		if p.Role == role {
			pids = append(pids, p.PID)
		}
	}
	if len(pids) == 0 {
		tr.t.Fatalf("%s: no %s among %+v", tr.name, role, r)
	}
	return pids
}

// runs lets the server carry out a run with artifacts.
func runs(tr *trial) scenario {
	var id string
	artifact := strings.Repeat("artifact ", 50_000)
	sum := sha256.Sum256([]byte(artifact))
	program := `import firebreak
open('big', 'w').write('artifact ' * 50000)
open('small', 'w').write('x')
print('hi')
firebreak.result({"ok": 1})`
	get := func() (*finishedRun, error) { return tr.run(id) }
	return scenario{
		act: func() {
			status, b := tr.server.call(tr.ctx, "POST", "/v1/runs", map[string]any{"program": map[string]any{"code": program}, "artifacts": []string{"big", "small"}})
			var made struct{ ID string }
			if status/100 != 2 || json.Unmarshal(b, &made) != nil {
				return
			}
			id = made.ID
			tr.promise("run", func() error {
				r, err := get()
				if err == nil && (r.State != "ended" || r.Reason != "done" && r.Reason != "lost") {
					err = fmt.Errorf("%+v", r)
				}
				return err
			})
			r, err := get()
			if err != nil || r.State != "ended" {
				return
			}
			tr.promise("result", func() error {
				again, err := get()
				if err == nil && (again.Reason != "done" || again.Stdout != r.Stdout || len(again.Artifacts) != len(r.Artifacts)) {
					err = fmt.Errorf("was %+v, is %+v", r, again)
				}
				return err
			})
		},
		after: func() {
			if id == "" {
				return
			}
			r, err := get()
			if err != nil || r.Reason != "done" {
				if err == nil && tr.started(r.Sandbox) {
					tr.errorf("the program of the run had begun, and its run is %+v", r)
				}
				return // lost, and the promise allowed it
			}
			if r.Stdout != "hi\n" || len(r.Artifacts) != 2 || r.Artifacts[0].SHA256 != hex.EncodeToString(sum[:]) {
				tr.errorf("the run says it is done: %+v", r)
			}
			if status, b := tr.server.call(tr.ctx, "GET", "/v1/runs/"+id+"/artifacts/big", nil); status != 200 || string(b) != artifact {
				tr.errorf("artifact: %d, %d bytes", status, len(b))
			}
		},
	}
}

type finishedRun struct {
	ID, State, Reason, Stdout string
	Sandbox                   string `json:"sandbox_id"`
	Artifacts                 []struct{ Path, SHA256, Error string }
}

func (tr *trial) run(id string) (r *finishedRun, err error) {
	status, b := tr.server.call(tr.ctx, "GET", "/v1/runs/"+id+"?wait_ms=30000", nil)
	if status != http.StatusOK {
		return nil, fmt.Errorf("run %s: %d %s", id, status, b)
	}
	return r, json.Unmarshal(b, &r)
}

// call is a request of a trial's; status 0 means that no answer came.
func (s *server) call(ctx context.Context, method, path string, body any) (status int, b []byte) {
	s.t.Helper()
	var r io.Reader
	if body != nil {
		j, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		r = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil
	}
	return resp.StatusCode, b
}

// changesKeys makes a key and revokes it.
func changesKeys(tr *trial) scenario {
	works := func(secret string) (bool, error) {
		c, err := client.New(client.Options{URL: tr.server.url, APIKey: secret})
		tr.must(err)
		defer c.Close()
		_, err = c.Version(tr.ctx)
		if sandbox.KindOf(err) == sandbox.KindUnauthenticated {
			return false, nil
		}
		return err == nil, err
	}
	var secret, id string
	revoking := false
	return scenario{
		act: func() {
			k, err := tr.c.CreateKey(tr.ctx, client.NewKey{Name: tr.label, Role: "viewer"})
			if err != nil {
				return
			}
			secret, id = k.GetSecret(), k.GetKey().GetId()
			tr.promise("key", func() error {
				ok, err := works(secret)
				if err == nil && !ok {
					if err = errors.New("it is refused"); revoking { // and that was recorded before it was done
						tr.effects, err = append(tr.effects, effect{"key.delete", ""}), nil
					}
				}
				return err
			})
			revoking = true
			if err := tr.c.DeleteKey(tr.ctx, id); err == nil {
				tr.promise("revocation", func() error {
					ok, err := works(secret)
					if err == nil && ok {
						err = errors.New("the key works")
					}
					return err
				})
			}
		},
		after: func() {
			keys, err := tr.c.Keys(tr.ctx)
			n := 0
			for _, k := range keys {
				if k.GetName() == tr.label {
					n++
				}
			}
			if err != nil || n > 1 {
				tr.errorf("%d keys of one name, %v", n, err)
			}
		},
	}
}
