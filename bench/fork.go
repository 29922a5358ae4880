package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Warm makes a sandbox whose interpreter knows something, and returns its id.
func (d *Daemon) Warm(ctx context.Context) (string, error) {
	id, err := d.Create(ctx, `{"template":"host","backend":"gvisor"}`)
	if err != nil {
		return "", err
	}
	_, err = d.answer(ctx, id, "n = 41; have = list(range(200000)); n")
	return id, err
}

// Remembers asks a sandbox that is, or goes on from, one of Warm's for what that
// knew.
func (d *Daemon) Remembers(ctx context.Context, id string) error {
	got, err := d.answer(ctx, id, "n + 1")
	if err == nil && got != "42" {
		err = fmt.Errorf("%s answers %q, not 42", id, got)
	}
	return err
}

// ClockOff asks a sandbox for the time, and returns how far the answer is from any
// moment at which it can have been given.
func (d *Daemon) ClockOff(ctx context.Context, id string) (time.Duration, error) {
	before := time.Now()
	got, err := d.answer(ctx, id, "__import__('time').time_ns()")
	after := time.Now()
	if err != nil {
		return 0, err
	}
	ns, err := strconv.ParseInt(got, 10, 64)
	return max(0, before.Sub(time.Unix(0, ns)), time.Unix(0, ns).Sub(after)), err
}

// answer is what an expression comes to in a sandbox's own Python context.
func (d *Daemon) answer(ctx context.Context, id, code string) (string, error) {
	body, err := json.Marshal(map[string]string{"code": code})
	if err != nil {
		return "", err
	}
	m, err := d.post(ctx, "/v1/sandboxes/"+id+"/contexts/python/eval", string(body))
	if err != nil {
		return "", err
	}
	results, _ := m["results"].([]any)
	if len(results) == 0 {
		return "", fmt.Errorf("eval: %v", m)
	}
	r, _ := results[len(results)-1].(map[string]any)
	text, _ := r["text"].(string)
	return strings.TrimSpace(text), nil
}

// Pause saves a sandbox and ends its boundary.
func (d *Daemon) Pause(ctx context.Context, id string) error {
	_, err := d.post(ctx, "/v1/sandboxes/"+id+"/pause", "{}")
	return err
}

// Fork makes n sandboxes of one that runs, which goes on, and returns their ids.
func (d *Daemon) Fork(ctx context.Context, id string, n int) ([]string, error) {
	out, err := d.Do(ctx, "POST", "/v1/sandboxes/"+id+"/fork", strings.NewReader(fmt.Sprintf(`{"count":%d}`, n)), 0)
	if err != nil {
		return nil, err
	}
	var m struct {
		Children []struct {
			Sandbox struct{ ID string }
			Error   any
		}
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return nil, err
	}
	var ids []string
	for _, c := range m.Children {
		if c.Sandbox.ID != "" {
			ids = append(ids, c.Sandbox.ID)
		} else {
			err = fmt.Errorf("a child was not made: %v", c.Error)
		}
	}
	if err == nil && len(ids) != n {
		err = fmt.Errorf("%d children, not %d", len(ids), n)
	}
	return ids, err
}

// ForkColumn forks a sandbox of Warm's, and stops the clock when all children have
// answered. They end before the next round.
func (d *Daemon) ForkColumn(name, id string, n int) Column {
	return Column{name, func(ctx context.Context) (took time.Duration, err error) {
		start := time.Now()
		ids, err := d.Fork(ctx, id, n)
		if err == nil {
			err = each(ids, func(id string) error { return d.Remembers(ctx, id) })
			took = time.Since(start)
		}
		if e := each(ids, func(id string) error { return d.Destroy(ctx, id) }); err == nil {
			err = e
		}
		time.Sleep(settled)
		return took, err
	}}
}

// settled is for how long a sandbox rests between rounds: what is made behind an
// answer is not to be in the way of the next.
const settled = time.Second

// each calls f with all of ids at once, and returns one of the errors.
func each(ids []string, f func(string) error) error {
	errs := make([]error, len(ids))
	var all sync.WaitGroup
	for k, id := range ids {
		all.Go(func() { errs[k] = f(id) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// ResumeColumn pauses a sandbox of Warm's, and measures from there on what asking it
// something takes, which resumes it.
func (d *Daemon) ResumeColumn(name, id string) Column {
	return Column{name, func(ctx context.Context) (time.Duration, error) {
		if err := d.Pause(ctx, id); err != nil {
			return 0, err
		}
		time.Sleep(settled)
		start := time.Now()
		err := d.Remembers(ctx, id)
		return time.Since(start), err
	}}
}

// ParentColumn measures how long a sandbox takes to answer while it is forked.
func (d *Daemon) ParentColumn(name, id string) Column {
	return Column{name, func(ctx context.Context) (took time.Duration, err error) {
		var ids []string
		forked := make(chan error, 1)
		go func() {
			var err error
			ids, err = d.Fork(ctx, id, 1)
			forked <- err
		}()
		time.Sleep(2 * time.Millisecond) // the fork has begun
		start := time.Now()
		err = d.Remembers(ctx, id)
		took = time.Since(start)
		if e := <-forked; err == nil {
			err = e
		}
		if e := each(ids, func(id string) error { return d.Destroy(ctx, id) }); err == nil {
			err = e
		}
		time.Sleep(settled)
		return took, err
	}}
}
