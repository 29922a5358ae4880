package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/backend/gvisor"
	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
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
	var closers []func() error
	end = func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, end())
		}
	}()
	quiet := slog.New(slog.DiscardHandler)
	programs, err := bundle.Open(dir)
	if err != nil {
		return c, end, err
	}
	closers = append(closers, programs.Close)
	backend, err := gvisor.New(gvisor.Config{Dir: filepath.Join(dir, "instances"), Runsc: programs.Runsc, Runtime: programs.Runtime, Log: quiet})
	if err != nil {
		return c, end, err
	}
	closers = append(closers, backend.Close)
	st, err := store.Open(ctx, filepath.Join(dir, "state.db"), quiet)
	if err != nil {
		return c, end, err
	}
	closers = append(closers, st.Close)
	var recorder sandbox.Recorder = discard{}
	if real {
		log, err := audit.Open(filepath.Join(dir, "audit", "server"), audit.Options{}, quiet)
		if err != nil {
			return c, end, err
		}
		closers = append(closers, log.Close)
		recorder = log
	}
	hub, err := event.Open(filepath.Join(dir, "events"), event.Options{}, quiet)
	if err != nil {
		return c, end, err
	}
	closers = append(closers, hub.Close)
	o, err := orchestrator.New(orchestrator.Config{Backends: []sandbox.Backend{backend}, Store: st, Recorder: recorder, Events: hub,
		Templates: templates, Runs: filepath.Join(dir, "runs"), DestroyOnClose: true, Log: quiet})
	if err == nil {
		err = o.Start(ctx)
	}
	if err != nil {
		return c, end, err
	}
	closers = append(closers, func() error { return o.Close(context.WithoutCancel(ctx)) })
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
