package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	return &cobra.Command{
		Use:   "demo",
		Short: "Run real Python in real sandboxes and show what was enforced",
		Long: `Demo runs a job, then code that looks around, dials out, eats memory, never ends,
forks without bound and fills the disk, and says for each what held it. Every line
is what happened just now on this machine. Exit code 1 if a control did not hold.`,
		Example: "  firebreak demo",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			start := time.Now()
			fmt.Fprintln(a.Out, "Firebreak demo: Python that nobody reviewed, on this machine, for real.")
			fmt.Fprintln(a.Out)
			d := &demo{app: a}
			err := a.with(cmd, true, func(s *session) error {
				d.session = s
				return d.play(cmd.Context())
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "\n%d controls held, %d did not", d.held, d.failed)
			if d.refused > 0 {
				fmt.Fprintf(a.Out, ", %d cannot be enforced here and were refused (`firebreak doctor` says why)", d.refused)
			}
			fmt.Fprintf(a.Out, "; %.1f s.\n", time.Since(start).Seconds())
			if d.failed > 0 {
				return exitError{exitFailed}
			}
			fmt.Fprintln(a.Out, "Yours: firebreak run -c 'print(6*7)', firebreak serve, firebreak --help")
			return nil
		},
	}
}

// demo is one performance.
type demo struct {
	app     *App
	session *session
	held    int
	failed  int
	refused int // cannot be enforced here, and was refused for it

	receipts []*v1.Receipt
}

// act is one scene: code, the limits it runs under, and what must come of it.
type act struct {
	title   string
	options client.RunOptions
	// verify says what happened, and false if a control did not hold.
	verify func(*v1.Run) []finding
}

type finding struct {
	ok   bool
	text string
}

func (d *demo) play(ctx context.Context) error {
	canary, err := os.CreateTemp("", "firebreak-demo-")
	if err != nil {
		return sandbox.Wrap("demo", "", err)
	}
	defer os.Remove(canary.Name())
	fmt.Fprintln(canary, "a secret of the host")
	if err := canary.Close(); err != nil {
		return sandbox.Wrap("demo", "", err)
	}
	for _, act := range []act{d.job(ctx), lookAround(canary.Name()), balloon(), loop(), forkBomb(), diskFill()} {
		if err := d.perform(ctx, act); err != nil {
			return err
		}
	}
	d.epilogue()
	return nil
}

func (d *demo) perform(ctx context.Context, act act) error {
	fmt.Fprintf(d.app.Out, "%s\n", act.title)
	act.options.Sandbox.MinIsolation = "user-kernel"
	var out, errs bytes.Buffer
	act.options.Stdout, act.options.Stderr = &out, &errs
	if act.options.Program.Timeout == 0 {
		act.options.Program.Timeout = 15 * time.Second
	}
	start := time.Now()
	run, err := d.session.Run(ctx, act.options)
	if err == nil {
		err = client.RunError(run)
	}
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnsupported {
		d.refused++
		fmt.Fprintf(d.app.Out, "  --   refused: %s\n", visible(se.Message()))
		return nil
	}
	if err != nil {
		return err
	}
	if text := strings.TrimSpace(out.String()); text != "" {
		fmt.Fprintf(d.app.Out, "    it printed: %s\n", visible(firstLine(text)))
	}
	d.receipts = append(d.receipts, run.GetReceipt())
	found := act.verify(run)
	for _, f := range found {
		d.note(f.ok, f.text)
	}
	if len(found) == 0 { // verify could not read the result
		d.note(false, fmt.Sprintf("it did not report: exit code %d, %s; %s", run.GetExitCode(), run.GetReason(), firstLine(errs.String())))
	}
	fmt.Fprintf(d.app.Out, "    %s; %.2f s from nothing to gone\n", resources(run), time.Since(start).Seconds())
	return nil
}

func (d *demo) note(ok bool, text string) {
	mark := "ok  "
	if ok {
		d.held++
	} else {
		d.failed++
		mark = "FAIL"
	}
	fmt.Fprintf(d.app.Out, "  %s %s\n", mark, visible(text))
}

func resources(run *v1.Run) string {
	u, t := run.GetUsage(), run.GetTimingsMs()
	use := "use not measured"
	if u.GetMemoryPeakBytes() > 0 {
		use = fmt.Sprintf("%.0f ms CPU, %s at most", u.GetCpuMs(), sandbox.FormatSize(u.GetMemoryPeakBytes()))
	}
	return fmt.Sprintf("created in %.0f ms, ran %.0f ms, destroyed in %.0f ms, %s", t.GetCreate(), t.GetExecute(), t.GetDestroy(), use)
}

func python(code string, args ...string) client.Command {
	return client.Command{Language: "python", Code: code, Args: args}
}

// job is honest work: output, a structured result and an artifact.
func (d *demo) job(ctx context.Context) act {
	return act{
		title: "1. A job: compute, report a result, leave a file",
		options: client.RunOptions{
			Program: python(`import firebreak
primes = [n for n in range(2, 10000) if all(n % d for d in range(2, int(n ** 0.5) + 1))]
print(len(primes), "primes below 10000")
open("primes.txt", "w").write("\n".join(map(str, primes)))
firebreak.result({"count": len(primes), "largest": primes[-1]})`),
			Artifacts: []string{"primes.txt"},
		},
		verify: func(run *v1.Run) []finding {
			var r struct{ Count, Largest int }
			if json.Unmarshal([]byte(run.GetResultJson()), &r) != nil {
				return nil
			}
			f := []finding{
				{run.GetExitCode() == 0 && run.GetReason() == "done", fmt.Sprintf("ended by itself with exit code %d in %s (%s)", run.GetExitCode(), run.GetBackend(), run.GetIsolation())},
				{r.Count == 1229 && r.Largest == 9973, "its structured result: " + run.GetResultJson()},
			}
			for _, art := range run.GetArtifacts() {
				h := sha256.New()
				n, err := d.session.ReadArtifact(ctx, run.GetId(), art.GetPath(), h)
				sum := hex.EncodeToString(h.Sum(nil))
				f = append(f, finding{err == nil && n == art.GetSize() && sum == art.GetSha256(),
					fmt.Sprintf("its file %s: %d bytes, SHA-256 %s… as promised", art.GetPath(), n, sum[:12])})
			}
			return append(f, finding{len(run.GetArtifacts()) == 1, fmt.Sprintf("%d artifact kept", len(run.GetArtifacts()))})
		},
	}
}

// lookAround is code that tries to find out where it is and to get out.
func lookAround(canary string) act {
	return act{
		title: "2. A spy: who am I, what can I see, whom can I call",
		options: client.RunOptions{Program: python(`import firebreak, os, socket, sys
def call(host, port):
    try:
        socket.create_connection((host, port), 2).close()
        return "connected"
    except OSError as e:
        return e.strerror or str(e)
status = dict(l.split(":", 1) for l in open("/proc/self/status") if ":" in l)
def denied(path):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path).read()
        return False
    except OSError:
        return True
firebreak.result({
    "uid": os.getuid(), "caps": status["CapEff"].strip(),
    "links": sorted(n for _, n in socket.if_nameindex()),
    "metadata": call("169.254.169.254", 80), "internet": call("1.1.1.1", 443),
    "name": call("example.com", 443),
    "canary": os.path.exists(sys.argv[1]),
    "processes": len([p for p in os.listdir("/proc") if p.isdigit()]),
    "root": denied("/root"), "kernel": open("/proc/version").read().strip(),
})`, canary)},
		verify: func(run *v1.Run) []finding {
			var r struct {
				UID                      int
				Caps, Kernel             string
				Links                    []string
				Metadata, Internet, Name string
				Canary, Root             bool
				Processes                int
			}
			if json.Unmarshal([]byte(run.GetResultJson()), &r) != nil {
				return nil
			}
			network := strings.Join(r.Links, ", ")
			if network == "" {
				network = "none"
			}
			host, _ := os.ReadFile("/proc/version")
			return []finding{
				{r.UID == 1000 && strings.Trim(r.Caps, "0") == "", fmt.Sprintf("it is uid %d with capabilities %s", r.UID, r.Caps)},
				{network == "none" || network == "lo", "network devices: " + network},
				{r.Metadata != "connected", "the cloud's metadata address 169.254.169.254: " + r.Metadata},
				{r.Internet != "connected" && r.Name != "connected", fmt.Sprintf("1.1.1.1: %s; example.com: %s", r.Internet, r.Name)},
				{!r.Canary, "a file of this machine, put there for it to find: not there"},
				{r.Root, "/root: denied"},
				{r.Processes < 20, fmt.Sprintf("processes it can see: %d, all of its own sandbox", r.Processes)},
				{r.Kernel != strings.TrimSpace(string(host)), "its kernel is not this machine's: " + firstWords(r.Kernel, 3)},
			}
		},
	}
}

func firstWords(s string, n int) string {
	w := strings.Fields(s)
	return strings.Join(w[:min(n, len(w))], " ")
}

// killed is the finding every limit has: why it ended, and how.
func killed(run *v1.Run, reason sandbox.Reason, code int) finding {
	return finding{
		run.GetReason() == string(reason) && exitCode(run.GetReason(), int(run.GetExitCode())) == code,
		fmt.Sprintf("%s, exit code %d", endLine(run.GetReason(), run.GetDetail(), code), run.GetExitCode()),
	}
}

func balloon() act {
	return act{
		title: "3. A balloon: 1 GB of memory where 64 MiB are allowed",
		options: client.RunOptions{
			Sandbox: client.CreateOptions{Memory: 64 << 20},
			Program: python("x = bytearray(10**9)"),
		},
		verify: func(run *v1.Run) []finding { return []finding{killed(run, sandbox.ReasonMemory, exitKilled)} },
	}
}

func loop() act {
	p := python("while True: pass")
	p.Timeout = 2 * time.Second
	return act{
		title:   "4. A loop that never ends, with two seconds to live",
		options: client.RunOptions{Program: p},
		verify: func(run *v1.Run) []finding {
			ms := run.GetTimingsMs().GetExecute()
			return []finding{killed(run, sandbox.ReasonTimeout, exitTimeout), {ms < 3500, fmt.Sprintf("it ran for %.1f s", ms/1000)}}
		},
	}
}

func forkBomb() act {
	return act{
		title: "5. A fork bomb, with 32 processes allowed",
		options: client.RunOptions{
			Sandbox: client.CreateOptions{PIDs: 32},
			Program: python("import os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)"),
		},
		verify: func(run *v1.Run) []finding { return []finding{killed(run, sandbox.ReasonPIDs, exitKilled)} },
	}
}

func diskFill() act {
	const limit = 32 << 20
	return act{
		title: "6. A disk filler, with 32 MiB allowed",
		options: client.RunOptions{
			Sandbox: client.CreateOptions{Disk: limit},
			Program: python(`import errno, firebreak
n = 0
try:
    with open("fill", "wb", buffering=0) as f:
        while True:
            n += f.write(b"x" * 65536)
except OSError as e:
    why = errno.errorcode[e.errno]
import os
os.remove("fill")
firebreak.result({"bytes": n, "why": why})`),
		},
		verify: func(run *v1.Run) []finding {
			var r struct {
				Bytes int64
				Why   string
			}
			if json.Unmarshal([]byte(run.GetResultJson()), &r) != nil {
				return nil
			}
			return []finding{{r.Why == "ENOSPC" && r.Bytes <= limit, fmt.Sprintf("%s after %s: full inside, and only inside", r.Why, sandbox.FormatSize(r.Bytes))}}
		},
	}
}

// epilogue looks for what the sandboxes owned, without asking the server again.
func (d *demo) epilogue() {
	fmt.Fprintln(d.app.Out, "7. Afterwards")
	objects, clean, kinds, left := 0, true, map[string]int{}, []string{}
	for _, r := range d.receipts {
		clean = clean && r.GetClean() && len(r.GetObjects()) > 0
		for _, o := range r.GetObjects() {
			objects++
			kinds[o.GetKind()]++
			if name := o.GetName(); strings.HasPrefix(name, "/") {
				if _, err := os.Lstat(name); err == nil {
					left = append(left, name)
				}
			}
		}
	}
	d.note(clean, fmt.Sprintf("%d receipts: %d objects (%s) removed and looked for again, all gone", len(d.receipts), objects, counts(kinds)))
	if d.session.local != nil {
		d.note(len(left) == 0, fmt.Sprintf("of the paths they name, %d are still here", len(left)))
	}
}

func counts(m map[string]int) string {
	parts := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%d %s", m[k], k))
	}
	return strings.Join(parts, ", ")
}
