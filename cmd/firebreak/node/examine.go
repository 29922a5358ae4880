package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// The statuses of a check.
const (
	ok     = "ok"
	weak   = "weak"
	failed = "failed"
)

// Examine looks at this machine for doctor. It boots a sandbox, which takes
// about a second, and leaves nothing.
func (w Wiring) Examine(ctx context.Context, c *config.Config) []cli.Check {
	checks := hostChecks(c)
	checks = append(checks, checkData(c)...)
	checks = append(checks, w.checkBoot(ctx, c)...)
	return append(checks, checkBuilder())
}

// checkData looks at the data directory: whose it is, and who uses it.
func checkData(c *config.Config) []cli.Check {
	const name = "data directory"
	if c.Data == "" {
		return []cli.Check{{Name: name, Status: failed, Detail: "none: neither XDG_DATA_HOME nor HOME is set", Fix: "export FIREBREAK_DATA=DIR"}}
	}
	owner, err := store.Lock(c.Data)
	var locked *store.LockedError
	switch {
	case errors.As(err, &locked):
		return []cli.Check{{Name: name, Status: ok, Detail: locked.Error() + ", a server"}}
	case err != nil:
		return []cli.Check{{Name: name, Status: failed, Detail: err.Error(), Fix: "export FIREBREAK_DATA to a directory you may write"}}
	}
	defer owner.Close()
	st, err := os.Stat(c.Data)
	if err != nil {
		return []cli.Check{{Name: name, Status: failed, Detail: err.Error()}}
	}
	if st.Mode().Perm()&0o022 != 0 {
		return []cli.Check{{Name: name, Status: failed, Detail: fmt.Sprintf("%s can be written by others (%v)", c.Data, st.Mode().Perm()), Fix: "chmod go-w " + c.Data}}
	}
	return []cli.Check{{Name: name, Status: ok, Detail: c.Data}}
}

// checkBoot makes a sandbox the way run does and runs a program in it.
func (w Wiring) checkBoot(ctx context.Context, c *config.Config) (checks []cli.Check) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	fail := func(name string, err error) []cli.Check {
		check := cli.Check{Name: name, Status: failed, Detail: err.Error(), Isolates: true}
		var se *sandbox.Error
		if errors.As(err, &se) {
			check.Detail, check.Fix = se.Message(), se.Hint
		}
		return append(checks, check)
	}
	local, err := w.Local(ctx, cli.LocalOptions{Config: c})
	if err != nil {
		return fail("start", err)
	}
	defer func() {
		if err := local.Close(); err != nil {
			checks = fail("clean up", err)
		}
	}()
	cl, err := client.New(client.Options{Dial: local.Dial, APIKey: local.Key()})
	if err != nil {
		return fail("start", err)
	}
	defer cl.Close()
	backends, auto, err := cl.Backends(ctx)
	if err != nil {
		return fail("backends", err)
	}
	for _, b := range backends {
		checks = append(checks, describe(b))
	}
	checks = append(checks, checkTemplates(ctx, cl))
	if auto == "" {
		return checks
	}
	run, err := cl.Run(ctx, client.RunOptions{Program: client.Command{Path: "true"}})
	if err == nil {
		err = client.RunError(run)
	}
	switch {
	case err != nil:
		return fail("boot", err)
	case run.GetReason() != string(sandbox.ReasonDone) || run.GetExitCode() != 0 || !run.GetReceipt().GetClean():
		return fail("boot", fmt.Errorf("%s, exit code %d, clean %t", run.GetReason(), run.GetExitCode(), run.GetReceipt().GetClean()))
	}
	t := run.GetTimingsMs()
	return append(checks, cli.Check{Name: "boot", Status: ok, Isolates: run.GetIsolation() != sandbox.IsolationNone.String(),
		Detail: fmt.Sprintf("%s: created in %.0f ms, ran a program, destroyed; all %d objects gone", run.GetBackend(), t.GetCreate(), len(run.GetReceipt().GetObjects()))})
}

// describe is a backend's own report. Whether it isolates is what boot decides.
func describe(b *v1.Backend) cli.Check {
	c := cli.Check{Name: "backend " + b.GetName(), Status: ok}
	if !b.GetAvailable() {
		c.Status, c.Detail, c.Fix = failed, b.GetReason(), b.GetHint()
		return c
	}
	limits := strings.Join(b.GetLimits(), ", ")
	if limits == "" {
		limits = "no limit"
	}
	c.Detail = fmt.Sprintf("isolation %s; enforces %s", b.GetIsolation(), limits)
	if b.GetVersion() != "" {
		c.Detail += "; " + b.GetVersion()
	}
	if b.GetIsolation() == sandbox.IsolationNone.String() {
		c.Detail = "a model for tests: isolates nothing, never chosen by auto"
		return c
	}
	if len(b.GetNotes()) > 0 {
		c.Status, c.Detail, c.Fix = weak, c.Detail+"; "+strings.Join(b.GetNotes(), "; "), b.GetHint()
	}
	return c
}

func checkTemplates(ctx context.Context, cl *client.Client) cli.Check {
	const name = "templates"
	ts, err := cl.Templates(ctx)
	if err != nil {
		return cli.Check{Name: name, Status: failed, Detail: err.Error()}
	}
	var have []string
	python := false
	for _, t := range ts {
		if t.GetState() != "built" {
			continue
		}
		have = append(have, fmt.Sprintf("%s (%s)", t.GetName(), strings.Join(t.GetLanguagePacks(), ", ")))
		for _, l := range t.GetLanguagePacks() {
			python = python || l == "python"
		}
	}
	switch {
	case len(have) == 0:
		return cli.Check{Name: name, Status: failed, Detail: "none is usable", Fix: "firebreak template build python"}
	case !python:
		return cli.Check{Name: name, Status: weak, Detail: strings.Join(have, "; ") + "; none runs Python", Fix: "apt-get install python3, or firebreak template build python"}
	}
	return cli.Check{Name: name, Status: ok, Detail: strings.Join(have, "; ")}
}

// checkBuilder looks for what template build needs.
func checkBuilder() cli.Check {
	const name = "template build"
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return cli.Check{Name: name, Status: weak, Detail: "mmdebstrap is missing; the host template works without", Fix: "apt-get install mmdebstrap"}
	}
	return cli.Check{Name: name, Status: ok, Detail: path}
}
