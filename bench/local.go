package bench

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/backend/gvisor"
	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// startLocal starts an orchestrator in this process, with the gVisor backend and
// all it keeps in dir. It records into the real log, or nowhere. end destroys its
// sandboxes; after an error there is nothing to end.
func startLocal(ctx context.Context, dir string, templates *template.Store, real bool, network orchestrator.Network) (o *orchestrator.Orchestrator, end func() error, err error) {
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
		return nil, end, err
	}
	closers = append(closers, programs.Close)
	c := gvisor.Config{Dir: filepath.Join(dir, "instances"), Runsc: programs.Runsc, Runtime: programs.Runtime, Log: quiet}
	if network != nil {
		c.Wires = func() error { return nil }
	}
	backend, err := gvisor.New(c)
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, backend.Close)
	st, err := store.Open(ctx, filepath.Join(dir, "state.db"), quiet)
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, st.Close)
	var recorder sandbox.Recorder = discard{}
	if real {
		log, err := audit.Open(filepath.Join(dir, "audit", "server"), audit.Options{}, quiet)
		if err != nil {
			return nil, end, err
		}
		closers = append(closers, log.Close)
		recorder = log
	}
	hub, err := event.Open(filepath.Join(dir, "events"), event.Options{}, quiet)
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, hub.Close)
	o, err = orchestrator.New(orchestrator.Config{Backends: []sandbox.Backend{backend}, Store: st, Recorder: recorder, Events: hub,
		Templates: templates, Network: network, Runs: filepath.Join(dir, "runs"), DestroyOnClose: true, Log: quiet})
	if err == nil {
		err = o.Start(ctx)
	}
	if err != nil {
		return nil, end, err
	}
	closers = append(closers, func() error { return o.Close(context.WithoutCancel(ctx)) })
	return o, end, nil
}
