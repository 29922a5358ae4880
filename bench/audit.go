package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Execs of one round of an Audited column: as many at a time as keep two CPUs
// busy, so that what counts is throughput.
const (
	execsPerRound = 16
	execsAtOnce   = 8
)

// discard is evidence that nobody keeps: what recording costs at the least.
type discard struct{}

// Record implements sandbox.Recorder.
func (discard) Record(context.Context, sandbox.Record) (sandbox.Position, error) { return 1, nil }

// silence takes output that nobody wants.
type silence struct{}

func (silence) Started(int, uint64) error   { return nil }
func (silence) Stdout([]byte, uint64) error { return nil }
func (silence) Stderr([]byte, uint64) error { return nil }

// Audited runs programs in a live sandbox of an orchestrator in this process,
// which records into the real log, or, to compare, nowhere. end destroys the
// sandbox.
func Audited(ctx context.Context, name, dir string, templates *template.Store, real bool) (c Column, end func() error, err error) {
	o, end, err := startLocal(ctx, dir, templates, real, nil)
	if err != nil {
		return c, end, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, end())
		}
	}()
	who := orchestrator.Caller{Tenant: sandbox.DefaultTenant, Principal: "bench"}
	sb, err := o.Create(ctx, who, orchestrator.CreateRequest{})
	if err != nil {
		return c, end, err
	}
	return Column{name, func(ctx context.Context) (time.Duration, error) {
		start := time.Now()
		err := execs(ctx, func() error {
			program := "/bin/true"
			exit, err := o.Exec(ctx, who, string(sb.ID), orchestrator.ExecRequest{Command: &program}, silence{})
			if err == nil && exit.Code != 0 {
				err = fmt.Errorf("exec: %+v", exit)
			}
			return err
		})
		return time.Since(start), err
	}}, end, nil
}

// execs runs one round of f.
func execs(ctx context.Context, f func() error) error {
	var wg sync.WaitGroup
	errs := make([]error, execsAtOnce)
	for k := range execsAtOnce {
		wg.Go(func() {
			for range execsPerRound / execsAtOnce {
				if errs[k] = errors.Join(f(), ctx.Err()); errs[k] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
