package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// patience bounds whatever a trial waits for.
const patience = 30 * time.Second

// ground is a data directory that trials use one after the other.
type ground struct {
	world    *world
	server   *server // nil while none runs
	arm      string  // the file that failpoints follow
	evidence sandbox.Position
	serial   int // of trials
	said     int
}

func newGround(t *testing.T) *ground {
	dir := t.TempDir()
	return &ground{world: newWorld(t, filepath.Join(dir, "data")), arm: filepath.Join(dir, "arm")}
}

// trial is one scenario with its crashes: what is done, what was acknowledged,
// and whether that is still so afterwards.
type trial struct {
	*ground
	t     *testing.T
	ctx   context.Context
	name  string // of this trial: operation and crashes
	label string // of what it makes, unique on its ground
	begun time.Time
	kills int
	c     *client.Client
	ids   map[string]bool // instances seen
	ahead map[string]bool // those of them that were made before anybody wanted them

	promises []promise
	effects  []effect

	// The result.
	whole, gone, lost, residues, wrong int
}

// promise is something that was acknowledged.
type promise struct {
	what  string
	holds func() error
}

// effect is something that happened, and so must be on record.
type effect struct{ action, sandbox string }

func (g *ground) trial(t *testing.T, name string) *trial {
	g.serial++
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	t.Cleanup(cancel)
	return &trial{ground: g, t: t, ctx: ctx, name: name, label: fmt.Sprintf("trial-%d", g.serial), begun: time.Now(), ids: map[string]bool{}, ahead: map[string]bool{}}
}

func (tr *trial) errorf(format string, args ...any) {
	tr.t.Helper()
	tr.wrong++
	tr.t.Errorf("%s: %s", tr.name, fmt.Sprintf(format, args...))
}

// must ends the trial's test when the preparation fails: it is no finding.
func (tr *trial) must(err error) {
	tr.t.Helper()
	if err != nil {
		log := ""
		if tr.server != nil {
			log = tr.server.log.String()
		}
		tr.t.Fatalf("%s: %v\n%s", tr.name, err, log)
	}
}

func (tr *trial) promise(what string, holds func() error) {
	tr.promises = append(tr.promises, promise{what, holds})
}

// say arms what, or nothing. The number makes it new when it is said again.
func (g *ground) say(t *testing.T, what string) {
	t.Helper()
	if g.said++; what != "" {
		what = fmt.Sprintf("%s %d", what, g.said)
	}
	if err := os.WriteFile(g.arm, []byte(what), 0o600); err != nil {
		t.Fatal(err)
	}
}

// hits returns what was counted since the last call.
func (g *ground) hits() []string {
	b, _ := os.ReadFile(g.arm + ".hits") // nothing was hit
	os.Remove(g.arm + ".hits")
	return strings.Fields(string(b))
}

// settled waits until no more hits come, and returns them.
func (g *ground) settled() []string {
	size := int64(-1)
	for {
		var now int64
		if st, err := os.Stat(g.arm + ".hits"); err == nil {
			now = st.Size()
		}
		if now == size {
			return g.hits()
		}
		size = now
		time.Sleep(150 * time.Millisecond)
	}
}

// start brings a server up, and reports false when it was killed by its
// failpoint before it was ready.
func (tr *trial) start() bool {
	tr.t.Helper()
	w := *tr.world
	w.t = tr.t
	tr.server = w.start("@" + tr.arm)
	ok := tr.server.ready()
	if !ok {
		if !tr.dead() {
			tr.t.Fatalf("%s: the server does not start:\n%s", tr.name, tr.server.log)
		}
		return false
	}
	tr.follow()
	return true
}

// follow makes a client of the server that runs.
func (tr *trial) follow() {
	tr.t.Helper()
	c, err := client.New(client.Options{URL: tr.server.url, APIKey: tr.server.key})
	tr.must(err)
	tr.c = c
}

// dead waits for the server's end and reports whether it was kill -9.
func (tr *trial) dead() bool {
	select {
	case <-tr.server.dead:
	case <-time.After(1500 * time.Millisecond):
		return false
	}
	if tr.c != nil {
		tr.c.Close()
	}
	ws, ok := tr.server.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// served is a context that ends with the server: a caller that would wait for
// the next one does not.
func (tr *trial) served() context.Context {
	ctx, cancel := context.WithCancel(tr.ctx)
	go func(dead <-chan struct{}) { // ends with the server, or the test
		defer cancel()
		select {
		case <-dead:
		case <-tr.ctx.Done():
		}
	}(tr.server.dead)
	return ctx
}

// kill kills the server where it stands.
func (tr *trial) kill() {
	tr.server.cmd.Process.Kill()
	tr.server.wait()
	if tr.c != nil {
		tr.c.Close()
	}
}

// look notes the instances that exist at this moment.
func (tr *trial) look() {
	list, _ := os.ReadDir(filepath.Join(tr.world.data, "instances")) // not made yet
	for _, e := range list {
		for _, id := range instanceID.FindAllString(e.Name(), -1) {
			// One that has no name yet may not say so yet, either.
			b, err := os.ReadFile(filepath.Join(tr.world.data, "instances", e.Name(), "instance.json"))
			if bytes.Contains(b, []byte(`"ahead":true`)) || err != nil && strings.HasPrefix(e.Name(), ".new-") {
				tr.ahead[id] = true
			}
			tr.ids[id] = true
			tr.world.base.Track(id)
		}
	}
}

// examine is the verdict: a server is up, nothing is armed. It leaves no
// sandbox behind.
func (tr *trial) examine(after func()) {
	tr.t.Helper()
	tr.look()
	list := tr.sandboxes("all")
	for _, sb := range list {
		if sb.GetState() == "paused" {
			tr.effects = append(tr.effects, effect{"sandbox.pause", sb.GetId()})
		}
		sb = tr.steady(sb)
		switch sb.GetState() {
		case "running", "paused":
			tr.whole++
		case "ended":
			if !sb.GetReceipt().GetClean() {
				tr.errorf("%s has ended and its receipt is %v", sb.GetId(), sb.GetReceipt())
			}
			tr.gone++
		default:
			tr.errorf("%s is neither whole nor gone: %v", sb.GetId(), sb)
		}
	}
	for _, p := range tr.promises {
		if err := p.holds(); err != nil {
			tr.lost++
			tr.errorf("acknowledged and lost: %s: %v", p.what, err)
		}
	}
	if after != nil {
		after()
	}
	for _, sb := range tr.sandboxes("") {
		if res, err := tr.c.Sandbox(sb.GetId()).Destroy(tr.ctx); err != nil || !res.GetReceipt().GetClean() {
			tr.errorf("destroy %s: %v, %v", sb.GetId(), res.GetReceipt(), err)
		}
	}
	_, err := tr.c.DrainPool(tr.ctx) // what was made ahead is nobody's
	tr.must(err)
	tr.clean()
	tr.proven(tr.sandboxes("all"))
}

// steady looks at a sandbox until it works or has ended: it may be ending just
// now, for a reason of its own.
func (tr *trial) steady(sb *v1.Sandbox) *v1.Sandbox {
	tr.t.Helper()
	for deadline := time.Now().Add(patience); sb.GetState() != "ended"; time.Sleep(50 * time.Millisecond) {
		err := fmt.Errorf("it is %s", sb.GetState())
		usable := sb.GetState() == "running" || sb.GetState() == "paused" // which that ends
		if usable {
			if err = tr.works(sb.GetId()); err == nil {
				return sb
			}
		}
		if k := sandbox.KindOf(err); time.Now().After(deadline) || usable && k != sandbox.KindGone && !errors.Is(err, errProgram) {
			tr.errorf("%s does not work: %v", sb.GetId(), err)
			return sb
		}
		now, err := tr.c.Sandbox(sb.GetId()).Info(tr.ctx)
		tr.must(err)
		sb = now
	}
	return sb
}

// errProgram is a program that did not do what it is for.
var errProgram = errors.New("the program failed")

// sandboxes lists what this trial made.
func (tr *trial) sandboxes(state string) (list []*v1.Sandbox) {
	tr.t.Helper()
	for sb, err := range tr.c.List(tr.ctx, client.ListOptions{State: state}) {
		tr.must(err)
		if sb.GetCreatedAt().AsTime().Before(tr.begun) {
			break // newest first
		}
		list = append(list, sb)
	}
	return list
}

// works runs a program in a sandbox.
func (tr *trial) works(id string) error {
	out, err := tr.exec(id, "print(6*7)")
	if err == nil && out != "42\n" {
		err = fmt.Errorf("%w: it printed %q", errProgram, out)
	}
	return err
}

// exec returns what a program printed, if it succeeded.
func (tr *trial) exec(id, code string) (string, error) {
	var out bytes.Buffer
	exit, err := tr.c.Sandbox(id).Exec(tr.ctx, client.Command{Code: code}, &out, &out)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("%w: %+v: %s", errProgram, exit, &out)
	}
	return out.String(), err
}

// reTemporary recognises what is only there while something is made.
var reTemporary = regexp.MustCompile(`^\.(tmp|new|unpack|api-key|build)-|\.(tmp|part|partial)$`)

// clean looks for what is left of the trial's sandboxes, which have all ended.
func (tr *trial) clean() {
	tr.t.Helper()
	var ids []string
	for id := range tr.ids {
		ids = append(ids, id)
	}
	for _, f := range residue.Of(residue.Scope{}, ids...) {
		tr.residues++
		tr.errorf("left behind: %v", f)
	}
	for _, d := range []string{"instances", "wires", "run", "processes"} {
		left, err := os.ReadDir(filepath.Join(tr.world.data, d))
		tr.must(err)
		for _, e := range left {
			tr.residues++
			tr.errorf("left behind: %s/%s", d, e.Name())
		}
	}
	tr.must(filepath.WalkDir(tr.world.data, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the database's side files come and go
		}
		if err == nil && reTemporary.MatchString(e.Name()) && e.Name() != "checkpoint.tmp" { // which is room for the next one
			tr.residues++
			tr.errorf("temporary and still there: %s", p)
		}
		if err == nil && e.IsDir() && e.Name() == "rootfs" {
			return fs.SkipDir // what a template holds is its own business
		}
		return err
	}))
}

// proven checks the evidence of the trial: the chain is whole, nothing of a
// sandbox comes before the record that it is to be made, each end has a receipt,
// and one more at most for every crash: a receipt that was recorded while the
// final record was not yet written is made again.
func (tr *trial) proven(list []*v1.Sandbox) {
	tr.t.Helper()
	dir := filepath.Join(tr.world.data, "audit", "server")
	if _, err := audit.Verify(dir); err != nil {
		tr.errorf("%v", err)
		return
	}
	pauses := map[string]int{}
	created, receipts, instances, done := map[string]bool{}, map[string]int{}, map[string]bool{}, map[effect]bool{}
	for e, err := range audit.Scan(dir, tr.evidence+1) {
		tr.must(err)
		tr.evidence = e.Position
		r, id := e.Record, string(e.Record.Sandbox)
		done[effect{r.Action, id}] = true
		switch {
		case r.Action == "sandbox.create" && r.Outcome == sandbox.OutcomeAllowed:
			created[id], instances[string(r.Instance)] = true, true
		case r.Action == "sandbox.resume" && r.Outcome == sandbox.OutcomeAllowed:
			instances[string(r.Instance)] = true
			pauses[id]++ // before it
		case strings.HasPrefix(r.Action, "run."), id == "":
		case !created[id]:
			tr.errorf("position %d, %s of %s, comes before the record of its making", e.Position, r.Action, id)
		case r.Action == "sandbox.receipt":
			receipts[id]++
		}
	}
	for _, sb := range list {
		if n := receipts[sb.GetId()]; n < 1 || n > 1+tr.kills+2*pauses[sb.GetId()] { // of each incarnation, also one that was not to be
			tr.errorf("%s has %d receipts on record after %d crashes", sb.GetId(), n, tr.kills)
		}
	}
	for id := range tr.ids {
		if !instances[id] && !tr.ahead[id] {
			tr.errorf("the instance %s was made without a record", id)
		}
	}
	for _, e := range tr.effects {
		if !done[e] {
			tr.errorf("%s happened in %s and is not on record", e.action, e.sandbox)
		}
	}
}

// read returns a file of a sandbox; "" and false when there is none.
func (tr *trial) read(id, path string) (string, bool) {
	tr.t.Helper()
	var b bytes.Buffer
	_, err := tr.c.Sandbox(id).ReadFile(tr.ctx, path, &b)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return "", false
	}
	if err != nil {
		tr.errorf("read %s of %s: %v", path, id, err)
	}
	return b.String(), err == nil
}
