package main

import (
	"context"
	"fmt"
	"time"

	"github.com/firebreak-dev/firebreak/bench"
)

// fork: from a warm sandbox that runs to children of it that have answered, and how
// long it does not answer itself.
func (s *set) fork(ctx context.Context) error {
	const one, many, parent, base = "fork: first answer of a child", "fork: 8 children, all answered", "fork: an answer of the parent meanwhile", "base: runsc run … true"
	return s.warm(ctx, []bench.Row{
		{Name: one, Rounds: s.rounds, Ours: 1, Goal: 1},
		{Name: many, Rounds: (s.rounds + 2) / 3, Ours: 1, Goal: 6},
		{Name: parent, Rounds: (s.rounds + 1) / 2, Ours: 1, Goal: 1},
	}, func(name, id string) bench.Column {
		switch name {
		case one:
			return s.d.ForkColumn("ours: POST fork, POST eval", id, 1)
		case many:
			return s.d.ForkColumn("ours: POST fork, 8 × POST eval", id, 8)
		}
		return s.d.ParentColumn("ours: POST eval beside POST fork", id)
	}, base)
}

// resume: from a paused sandbox to its first answer, and whether its clock is right
// then.
func (s *set) resume(ctx context.Context) error {
	const answer, clock = "resume: first answer", "resume: the clock is off by"
	err := s.warm(ctx, []bench.Row{{Name: answer, Rounds: s.rounds, Ours: 1, Goal: 0.7}}, func(_, id string) bench.Column {
		return s.d.ResumeColumn("ours: POST eval of a paused one", id)
	}, "base: runsc run … true")
	if err != nil || !s.want.MatchString(clock) {
		return err
	}
	id, err := s.d.Warm(ctx)
	if err != nil {
		return err
	}
	var worst time.Duration
	for range max(3, s.rounds/4) {
		if err := s.d.Pause(ctx, id); err != nil {
			return err
		}
		off, err := s.d.ClockOff(ctx, id)
		if err != nil {
			return err
		}
		worst = max(worst, off)
	}
	f := figure{clock + ", at most", float64(worst) / float64(time.Millisecond), "ms"}
	s.rep.Figures = append(s.rep.Figures, f)
	fmt.Printf("%s\n    %.3f ms\n\n", f.Name, f.Value)
	return s.d.Destroy(ctx, id)
}

// warm measures rows of something that is done with a sandbox whose interpreter is
// warm, one for each row, against upstream's runtime.
func (s *set) warm(ctx context.Context, rows []bench.Row, ours func(name, id string) bench.Column, base string) error {
	for _, row := range rows {
		if !s.want.MatchString(row.Name) {
			continue
		}
		peer, err := s.peer(ctx)
		if err != nil {
			return err
		}
		id, err := s.d.Warm(ctx)
		if err != nil {
			return err
		}
		row.Columns = []bench.Column{{Name: base, Run: peer.RunTrue}, ours(row.Name, id)}
		if err := firstError(s.measure(ctx, row), s.d.Destroy(ctx, id)); err != nil {
			return err
		}
	}
	return nil
}
