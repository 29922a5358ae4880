package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak/bench"
)

// egress is what the rows of networks share.
func (s *set) egress(ctx context.Context) (*bench.Egress, error) {
	if s.net != nil {
		return s.net, nil
	}
	dir := filepath.Join(s.dir, "egress")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	e, err := bench.StartEgress(ctx, s.binary, dir, s.templates)
	if err == nil {
		s.net = e
	}
	return e, err
}

// wire: one sandbox's connections, against those of the same sandbox on a plain
// network that a relay ends in the host's kernel.
func (s *set) wire(ctx context.Context) error {
	const mib = 64
	rows := []struct {
		name, what string
		port, n    int
		rate       bool
		goal       float64
	}{
		{"egress: 64 MiB up", "up", bench.PortUp, mib, true, 0.55},
		{"egress: 64 MiB down", "down", bench.PortDown, mib, true, 0.55},
		{"egress: connect + first byte, HTTP", "connect", bench.PortHTTP, 50, false, 1.8},
		{"egress: connect + first byte, raw", "connect", bench.PortRaw, 50, false, 1.8},
		{"egress: keep-alive request", "request", bench.PortHTTP, 200, false, 1.8},
		{"inspect: connect + first byte, HTTPS", "connect", bench.PortTLS, 50, false, 1.2},
		{"inspect: keep-alive request, HTTPS", "request", bench.PortTLS, 200, false, 2.5},
	}
	var ours, base *bench.Guest
	for _, r := range rows {
		if !s.want.MatchString(r.name) {
			continue
		}
		if ours == nil {
			e, err := s.egress(ctx)
			if err != nil {
				return err
			}
			if ours, err = e.Guest(ctx, bench.Usual); err != nil {
				return err
			}
			if base, err = e.Plain(ctx, bench.Usual); err != nil {
				return err
			}
		}
		err := s.measure(ctx, bench.Row{Name: r.name, Rounds: s.rounds, Ours: 1, Base: 0, Rate: r.rate, Goal: r.goal, Columns: []bench.Column{
			base.Column("base: the same sandbox, a relay on kernel TCP", r.what, r.port, r.n),
			ours.Column("ours", r.what, r.port, r.n),
		}})
		if err != nil {
			return err
		}
	}
	if ours == nil {
		return nil
	}
	return s.net.Daemon.Destroy(ctx, ours.ID)
}

// contact: the first connection to a host that nobody asked for before, against a
// proxy that people use.
func (s *set) contact(ctx context.Context) error {
	const name = "inspect: first contact with a host"
	if !s.want.MatchString(name) {
		return nil
	}
	c, err := bench.StartContact()
	if err != nil {
		return err
	}
	defer c.Close()
	return s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 1, Base: 0, Rate: true, Goal: 20, Columns: []bench.Column{
		{Name: "peer: goproxy", Run: c.Peer}, {Name: "ours", Run: c.Ours}}})
}

// flood: what a sandbox that makes ten thousand connections does to another.
func (s *set) flood(ctx context.Context) error {
	const name, conns, seconds = "egress: p99 of a neighbour's request beside 10,000 connections", 10_000, 4
	const relayed = "relay: p99 of a neighbour's request beside 10,000 connections"
	const computing = "egress: p99 of a neighbour's request beside a sandbox that computes"
	if !s.want.MatchString(name) {
		return nil
	}
	e, err := s.egress(ctx)
	if err != nil {
		return err
	}
	guest := func(f func(context.Context, int64) (*bench.Guest, error)) *bench.Guest {
		g, ferr := f(ctx, bench.Roomy)
		err = firstError(err, ferr)
		return g
	}
	one, two, plain, other := guest(e.Guest), guest(e.Guest), guest(e.Plain), guest(e.Plain)
	if err != nil {
		return err
	}
	rounds := max(3, s.rounds/10)
	err = s.measure(ctx, bench.Row{Name: name, Rounds: rounds, Ours: 1, Base: 0, Goal: 2, Columns: []bench.Column{
		one.Calm("before", bench.PortHTTP, seconds), one.Beside("during", two, bench.PortHTTP, conns, seconds)}})
	if err == nil { // no goal of ours: what the machine alone does
		err = s.measure(ctx, bench.Row{Name: relayed, Rounds: rounds, Ours: 1, Base: 0, Goal: 2, Columns: []bench.Column{
			plain.Calm("before", bench.PortHTTP, seconds), plain.Beside("during", other, bench.PortHTTP, conns, seconds)}})
	}
	if err == nil { // nor this: what a processor costs that another sandbox uses
		err = s.measure(ctx, bench.Row{Name: computing, Rounds: rounds, Ours: 1, Base: 0, Goal: 2, Columns: []bench.Column{
			one.Calm("before", bench.PortHTTP, seconds), one.BesideWork("during", two, bench.PortHTTP, seconds)}})
	}
	return firstError(err, e.Daemon.Destroy(ctx, one.ID), e.Daemon.Destroy(ctx, two.ID))
}

// wires: a hundred sandboxes on one router.
func (s *set) wires(ctx context.Context) error {
	const name, n, each = "egress: 100 wires", 100, 500
	if !s.want.MatchString(name) {
		return nil
	}
	e, err := s.egress(ctx)
	if err != nil {
		return err
	}
	var guests []*bench.Guest
	defer func() {
		for _, g := range guests {
			err = firstError(err, e.Daemon.Destroy(context.WithoutCancel(ctx), g.ID))
		}
	}()
	add := func(n int) error {
		for len(guests) < n {
			g, err := e.Guest(ctx, bench.Usual)
			if err != nil {
				return fmt.Errorf("after %d sandboxes: %w", len(guests), err)
			}
			guests = append(guests, g)
		}
		time.Sleep(2 * time.Second) // idle means idle
		return nil
	}
	if err := add(1); err != nil {
		return err
	}
	one, err := e.Router()
	if err == nil {
		err = add(n)
	}
	if err != nil {
		return err
	}
	idle, err := e.Router()
	if err != nil {
		return err
	}
	took, most, err := e.Together(ctx, guests, bench.PortHTTP, each)
	if err != nil {
		return err
	}
	fmt.Printf("%d wires in one router, %d requests by each at once, all of which succeeded\n", n, each)
	for _, f := range []figure{
		{"egress: 100 wires, requests", n * each / took.Seconds(), "requests/s"},
		{"egress: router with 1 idle wire, RSS", mib(one.RSS), "MiB"},
		{"egress: router with 1 idle wire, PSS", mib(one.PSS), "MiB"},
		{"egress: router with 100 idle wires, RSS", mib(idle.RSS), "MiB"},
		{"egress: router with 100 idle wires, PSS", mib(idle.PSS), "MiB"},
		{"egress: router with 100 active wires, RSS", mib(most.RSS), "MiB"},
		{"egress: router with 100 active wires, PSS", mib(most.PSS), "MiB"},
		{"egress: an active wire, PSS", 1024 * mib(most.PSS-one.PSS) / (n - 1), "KiB"},
	} {
		fmt.Printf("    %-44s %9.1f %s\n", f.Name, f.Value, f.Unit)
		s.rep.Figures = append(s.rep.Figures, f)
	}
	s.figure("egress: an idle wire, PSS of the router", mib(idle.PSS-one.PSS)/(n-1), 0.25)
	return nil
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
