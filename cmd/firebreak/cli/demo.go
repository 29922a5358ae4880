package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) demoCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Let hostile programs try everything, here and now, and show what stopped them",
		Long: `Demo runs eight programs that nobody reviewed, each in a real sandbox of its own:
seven attacks and a job. They steal credentials, send secrets out, fork without
bound, eat memory, never end, fill the disk and break out. Each line names a
control and what was measured just now on this machine. Then it counts what the
receipts list, verifies the audit log, and changes copies of it to see them
rejected.

It needs no network and no server, and no root beyond what run needs: a limit
that cannot be enforced for this user is refused, and demo says so. It works in
the data directory, where only the evidence stays. Exit code 1 if a control did
not hold.`,
		Example: "  firebreak demo\n  firebreak demo --json | jq .failed",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object with every finding instead of the story")
	return cmd
}

func (a *App) demo(ctx context.Context, asJSON bool) error {
	d := &demo{start: time.Now(), Scenes: []*scene{}}
	if !asJSON {
		d.story = a.story()
	}
	err := d.play(ctx, a)
	if err != nil {
		return err
	}
	if d.Millis = time.Since(d.start).Milliseconds(); asJSON {
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
	Millis  int64    `json:"duration_ms"`

	story    *story // nil without anybody to tell it to
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
	d.story.begin(bait)
	for i, act := range acts(bait) {
		if err := d.perform(ctx, s, act); err != nil {
			return err
		}
		if i == 1 { // there is something to sign, and more is to come
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

// perform runs one act and tells of it.
func (d *demo) perform(ctx context.Context, s *session, act act) error {
	sc := d.open(act.name, act.title)
	act.options.Sandbox.MinIsolation = "user-kernel"
	var out, errs bytes.Buffer
	act.options.Stdout, act.options.Stderr = &out, &errs
	if act.options.Program.Timeout == 0 {
		act.options.Program.Timeout = 20 * time.Second
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
