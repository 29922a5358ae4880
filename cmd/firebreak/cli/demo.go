package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) demoCommand() *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo [SCENE...]",
		Short: "Let hostile programs try everything, here and now, and show what stopped them",
		Long: `Demo runs nine programs that nobody reviewed, each in a real sandbox of its own:
eight attacks and a job. They steal credentials, send secrets out, push at a door
that is ajar, fork without bound, eat memory, never end, fill the disk and break
out. Each line names a control and what was measured just now on this machine.
Then it counts what the receipts list, verifies the audit log, and changes copies
of it to see them rejected.

--backend names what makes the sandboxes, such as microvm, a kernel for each. What
that does not have is told as such, never as held. An emulated machine takes
seconds to boot, and the first one longer: its image is made of the template.
SCENE is one of ` + strings.Join(sceneNames(), ", ") + `;
without any all are played.

It needs no network and no server, and no root beyond what run needs: a limit
that cannot be enforced for this user is refused, and demo says so. It works in
the data directory, where only the evidence stays. Exit code 1 if a control did
not hold.`,
		Example: "  firebreak demo\n  firebreak demo --backend microvm --template python\n  firebreak demo escape job --json | jq .failed",
		RunE:    func(cmd *cobra.Command, scenes []string) error { return a.demo(cmd.Context(), scenes, f) },
	}
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object with every finding instead of the story")
	cmd.Flags().StringVar(&f.backend, "backend", "", "what makes the sandboxes (default: as for run)")
	cmd.Flags().StringVarP(&f.template, "template", "t", "", "what they start from; it has to have Python (default: as for run)")
	return cmd
}

// demoFlags say where the demo is played.
type demoFlags struct {
	json              bool
	backend, template string
}

func (a *App) demo(ctx context.Context, scenes []string, f demoFlags) error {
	names := sceneNames()
	for _, s := range scenes {
		if !slices.Contains(names, s) {
			return sandbox.Errorf("", sandbox.KindInvalid, "%q is no scene of the demo", s).WithHint("there are %s", strings.Join(names, ", "))
		}
	}
	d := &demo{start: time.Now(), Scenes: []*scene{}, flags: f, only: scenes}
	if !f.json {
		d.story = a.story()
	}
	err := d.play(ctx, a)
	if err != nil {
		return err
	}
	if d.Millis = time.Since(d.start).Milliseconds(); f.json {
		err = a.printJSON(d)
	} else {
		d.story.end(d)
	}
	if err == nil && d.Failed > 0 {
		err = exitError{exitFailed}
	}
	return err
}

// demo is one performance, and the object of `demo --json`.
type demo struct {
	Scenes  []*scene `json:"scenes"`
	Held    int      `json:"held"`
	Failed  int      `json:"failed"`
	Refused int      `json:"refused"` // cannot be enforced here, and was refused for it
	Absent  int      `json:"absent"`  // is nothing that this backend has
	Millis  int64    `json:"duration_ms"`

	flags    demoFlags
	only     []string    // scenes; none: all
	backend  *v1.Backend // what makes the sandboxes
	story    *story      // nil without anybody to tell it to
	start    time.Time
	receipts []*v1.Receipt
	aside    witnessed
}

// scene is one attack and what became of it.
type scene struct {
	Name     string    `json:"name"`
	Title    string    `json:"title"`
	Findings []finding `json:"findings"`
	Run      *sceneRun `json:"run,omitempty"`
}

// finding is what one control did. Measured is what was seen, never what should
// have been.
type finding struct {
	Control  string `json:"control"`
	Outcome  string `json:"outcome"`
	Measured string `json:"measured"`
}

// The outcomes of a finding.
const (
	held    = "held"
	failed  = "failed"
	refused = "refused"
	absent  = "absent"
)

func found(ok bool, control, format string, args ...any) finding {
	f := finding{control, held, fmt.Sprintf(format, args...)}
	if !ok {
		f.Outcome = failed
	}
	return f
}

// sceneRun is how the program of a scene ran.
type sceneRun struct {
	Sandbox    string  `json:"sandbox_id"`
	Reason     string  `json:"reason"`
	ExitCode   int     `json:"exit_code"`
	Create     float64 `json:"create_ms"`
	Execute    float64 `json:"execute_ms"`
	Destroy    float64 `json:"destroy_ms"`
	CPU        float64 `json:"cpu_ms"`
	MemoryPeak int64   `json:"memory_peak_bytes"`
}

// act is a scene's program, the limits it runs under, and what must come of it.
type act struct {
	name, title string
	limit       string // the control that may be refused, where it can
	networked   bool   // it needs a backend that attaches networks
	options     client.RunOptions
	// verify says what happened. Nothing to say means that the program told
	// nothing that could be read.
	verify func(context.Context, *session, *v1.Run) []finding
}

// play acts on a Firebreak of its own in this process, so that it is this machine
// and this evidence that are looked at.
func (d *demo) play(ctx context.Context, a *App) (err error) {
	bait, err := layBait()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bait.remove()) }()
	s, err := a.local(ctx)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, s.close())
		}
	}()
	if err := d.cast(ctx, a, s); err != nil {
		return err
	}
	d.story.begin(bait, d.backend)
	if err := d.rehearse(ctx, s); err != nil {
		return err
	}
	played := 0
	for _, act := range acts(bait) {
		if len(d.only) > 0 && !slices.Contains(d.only, act.name) {
			continue
		}
		if err := d.perform(ctx, s, act); err != nil {
			return err
		}
		if played++; d.aside.dir == "" && (played == 2 || len(d.only) == 1) { // there is something to sign, and more is to come
			if err := d.putAside(s.local.Evidence()); err != nil {
				return err
			}
			defer os.RemoveAll(d.aside.dir)
		}
	}
	closed = true
	if err := s.close(); err != nil { // the log is complete from here on
		return err
	}
	d.lookForRemains()
	return d.checkLog(s.local.Evidence())
}

// cast finds out what will make the sandboxes.
func (d *demo) cast(ctx context.Context, a *App, s *session) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	all, auto, err := s.Backends(ctx)
	if err != nil {
		return err
	}
	name := cmp.Or(d.flags.backend, c.Backend)
	if name == "auto" {
		name = auto
	}
	for _, b := range all {
		if b.GetName() == name {
			d.backend = b
			return nil
		}
	}
	return nil // the first sandbox says what is wrong
}

// rehearsals bounds how often a sandbox is tried that nobody waits for.
const rehearsals = 8

// rehearse has an emulated machine's image made, which may take longer than a sandbox
// may take to start, so that no scene has to wait for it.
func (d *demo) rehearse(ctx context.Context, s *session) error {
	if !d.backend.GetEmulated() {
		return nil
	}
	d.story.note("The first machine of a template takes longer: its image is made.")
	for n := 1; ; n++ {
		run, err := s.Run(ctx, client.RunOptions{Sandbox: client.CreateOptions{Backend: d.flags.backend, Template: d.flags.template}, Program: client.Command{Language: "python", Code: "pass"}})
		if err == nil {
			err = client.RunError(run)
		}
		switch {
		case err == nil:
			d.receipts = append(d.receipts, run.GetReceipt())
			return nil
		case n == rehearsals || ctx.Err() != nil || sandbox.KindOf(err) != sandbox.KindTimeout && sandbox.KindOf(err) != sandbox.KindUnavailable:
			return err
		}
	}
}

// perform runs one act and tells of it.
func (d *demo) perform(ctx context.Context, s *session, act act) error {
	sc := d.open(act.name, act.title)
	if act.networked && !d.backend.GetNetwork() {
		d.note(sc, finding{cmp.Or(act.limit, "network"), absent, fmt.Sprintf("not on this backend: %s attaches no network to its sandboxes here", d.backend.GetName())})
		return nil
	}
	act.options.Sandbox.MinIsolation, act.options.Sandbox.Backend, act.options.Sandbox.Template = "user-kernel", d.flags.backend, d.flags.template
	var out, errs bytes.Buffer
	act.options.Stdout, act.options.Stderr = &out, &errs
	if act.options.Program.Timeout == 0 {
		act.options.Program.Timeout = 20 * time.Second
		if d.backend.GetEmulated() {
			act.options.Program.Timeout = 2 * time.Minute
		}
	}
	run, err := s.Run(ctx, act.options)
	if err == nil {
		err = client.RunError(run)
	}
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnsupported {
		d.note(sc, finding{cmp.Or(act.limit, "refusal"), refused, se.Message()})
		return nil
	}
	if err != nil {
		return err
	}
	d.receipts = append(d.receipts, run.GetReceipt())
	u, t := run.GetUsage(), run.GetTimingsMs()
	sc.Run = &sceneRun{run.GetSandboxId(), run.GetReason(), exitCode(run.GetReason(), int(run.GetExitCode())),
		t.GetCreate(), t.GetExecute(), t.GetDestroy(), u.GetCpuMs(), u.GetMemoryPeakBytes()}
	findings := act.verify(ctx, s, run)
	if len(findings) == 0 {
		findings = []finding{{"report", failed, fmt.Sprintf("none: exit code %d, %s; %s", run.GetExitCode(), run.GetReason(), lastLine(errs.String()))}}
	}
	d.note(sc, findings...)
	d.story.ran(sc.Run)
	return nil
}

// open begins a scene.
func (d *demo) open(name, title string) *scene {
	sc := &scene{Name: name, Title: title, Findings: []finding{}}
	d.Scenes = append(d.Scenes, sc)
	d.story.scene(len(d.Scenes), sc)
	return sc
}

// note adds findings to a scene, and counts and tells them.
func (d *demo) note(sc *scene, findings ...finding) {
	for _, f := range findings {
		sc.Findings = append(sc.Findings, f)
		switch f.Outcome {
		case held:
			d.Held++
		case failed:
			d.Failed++
		case refused:
			d.Refused++
		case absent:
			d.Absent++
		}
		d.story.finding(f)
	}
}

// lookForRemains counts what the sandboxes owned and looks for it once more,
// without asking whoever removed it.
func (d *demo) lookForRemains() {
	sc := d.open("receipts", "The receipts: what did these sandboxes own, and is it gone?")
	objects, clean, kinds, paths, left := 0, true, map[string]int{}, 0, []string{}
	for _, r := range d.receipts {
		clean = clean && r.GetClean() && len(r.GetObjects()) > 0
		for _, o := range r.GetObjects() {
			objects++
			kinds[o.GetKind()]++
			if name := o.GetName(); strings.HasPrefix(name, "/") {
				paths++
				if _, err := os.Lstat(name); err == nil {
					left = append(left, name)
				}
			}
		}
	}
	d.note(sc,
		found(clean && objects > 0, "verified teardown", "%d receipts, %d objects, each looked for again: %s", len(d.receipts), objects, counts(kinds)),
		found(len(left) == 0 && paths > 0, "a second look", "of the %d paths among them, %d exist%s", paths, len(left), listed(left)))
}

// listed are at most three of what should not be there, to be appended.
func listed(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return ": " + strings.Join(list[:min(3, len(list))], ", ")
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
