package chaos

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// remembers is a sandbox whose context and file know a number.
func (tr *trial) remembers(sb *client.Sandbox) {
	tr.t.Helper()
	_, err := eval(tr, sb.ID(), "import random\nrandom.seed(7)\nopen('known', 'w').write('7')\nx = 7")
	tr.must(err)
}

// remembered checks that it still does. It wakes a sandbox that is paused.
func (tr *trial) remembered(id string) error {
	t, err := eval(tr, id, "x, open('known').read()")
	if err == nil && (t.end.Reason != sandbox.ReasonDone || t.text != "(7, '7')") {
		err = fmt.Errorf("it knows %q: %+v", t.text, t.end)
	}
	return err
}

// allowed lets a sandbox reach one host.
var allowed = &client.Network{Allow: []string{"known.example"}}

// connected checks that a sandbox's wire is served, by its own policy: names that this
// allows have addresses, and no others, which takes nobody but the router.
func (tr *trial) connected(id string) error {
	t, err := eval(tr, id, `import socket
def known(name):
    try: return socket.gethostbyname(name)[:5]
    except socket.gaierror as e: return e.errno == socket.EAI_NONAME
known('known.example'), known('other.example')`)
	if err == nil && (t.end.Reason != sandbox.ReasonDone || t.text != "('198.1', True)") {
		err = fmt.Errorf("names are %q: %+v", t.text, t.end)
	}
	return err
}

// intact checks that a sandbox remembers, and is connected if it has a network. It
// wakes one that is paused.
func (tr *trial) intact(id string, n *client.Network) error {
	err := tr.remembered(id)
	if err == nil && n != nil {
		err = tr.connected(id)
	}
	return err
}

// pauses saves a sandbox: whenever the server dies it is as it was, or paused, and
// remembers all there was. So does pausesWired, with a network.
func pauses(tr *trial) scenario      { return tr.pauses(nil) }
func pausesWired(tr *trial) scenario { return tr.pauses(allowed) }

func (tr *trial) pauses(n *client.Network) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{Network: n})
			tr.remembers(sb)
		},
		act: func() {
			tr.promise("sandbox "+sb.ID(), func() error { return tr.intact(sb.ID(), n) })
			if _, err := sb.Pause(tr.ctx); err == nil {
				tr.promise("pause", func() error {
					info, err := tr.c.Sandbox(sb.ID()).Info(tr.ctx)
					if err == nil && info.GetState() != "paused" && info.GetState() != "running" { // another check may have woken it
						err = fmt.Errorf("it is %s", info.GetState())
					}
					return err
				})
			}
		},
		after: func() {
			info, err := tr.c.Sandbox(sb.ID()).Info(tr.ctx)
			if err != nil || info.GetState() != "paused" && info.GetState() != "running" {
				tr.errorf("%v, %v", info, err)
			}
			if err := tr.intact(sb.ID(), n); err != nil {
				tr.errorf("%v", err)
			}
		},
	}
}

// resumes makes a paused sandbox run again: whenever the server dies it is paused,
// or runs. So does resumesWired, with a network.
func resumes(tr *trial) scenario      { return tr.resumes(nil) }
func resumesWired(tr *trial) scenario { return tr.resumes(allowed) }

func (tr *trial) resumes(n *client.Network) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{Network: n})
			tr.remembers(sb)
			_, err := sb.Pause(tr.ctx)
			tr.must(err)
		},
		act: func() {
			tr.promise("sandbox "+sb.ID(), func() error { return tr.intact(sb.ID(), n) })
			if _, err := sb.Resume(tr.ctx); err == nil {
				tr.alive(sb.ID())
			}
		},
		after: func() {
			if info, err := tr.c.Sandbox(sb.ID()).Info(tr.ctx); err == nil && info.GetState() == "running" {
				tr.effects = append(tr.effects, effect{"sandbox.resume", sb.ID()})
			}
			if err := tr.intact(sb.ID(), n); err != nil {
				tr.errorf("%v", err)
			}
		},
	}
}

// resumesAhead is resumes when what it goes on in has been made.
func resumesAhead(tr *trial) scenario {
	s := resumes(tr)
	paused := s.before
	s.before = func() {
		paused()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			made, err := filepath.Glob(filepath.Join(tr.world.data, "instances", "*", "processes"))
			tr.must(err)
			if len(made) > 0 {
				return
			}
			if time.Now().After(deadline) {
				tr.t.Fatal("no place is made for a paused sandbox")
			}
		}
	}
	return s
}

// snapshots takes a snapshot and makes a sandbox of it. There is one or none, and
// of one that there is a sandbox can be made.
func snapshots(tr *trial) scenario {
	var sb *client.Sandbox
	fork := func() error {
		child, err := tr.c.Create(tr.ctx, client.CreateOptions{Snapshot: tr.label})
		if err != nil {
			return err
		}
		return tr.remembered(child.ID())
	}
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			tr.remembers(sb)
		},
		act: func() {
			tr.promise("sandbox "+sb.ID(), func() error { return tr.remembered(sb.ID()) })
			if _, err := sb.Snapshot(tr.ctx, tr.label, 0); err == nil {
				tr.promise("snapshot", fork)
			}
		},
		after: func() {
			n := 0
			list, err := tr.c.Snapshots(tr.ctx)
			for _, s := range list {
				if s.GetName() == tr.label {
					n++
				}
			}
			if err != nil || n > 1 {
				tr.errorf("%d snapshots of one name, %v", n, err)
			}
			if n == 1 {
				tr.effects = append(tr.effects, effect{"snapshot.create", sb.ID()})
				if err := fork(); err != nil {
					tr.errorf("made of the snapshot: %v", err)
				}
				if err := tr.c.RemoveSnapshot(tr.ctx, tr.label); err != nil {
					tr.errorf("%v", err)
				}
			}
			if err := tr.remembered(sb.ID()); err != nil {
				tr.errorf("%v", err)
			}
		},
	}
}

// forks makes a sandbox of a snapshot and then removes that. So does forksWired, with a
// network.
func forks(tr *trial) scenario      { return tr.forks(nil) }
func forksWired(tr *trial) scenario { return tr.forks(allowed) }

func (tr *trial) forks(n *client.Network) scenario {
	return scenario{
		before: func() {
			sb := tr.newSandbox(client.CreateOptions{Network: n})
			tr.remembers(sb)
			_, err := sb.Snapshot(tr.ctx, tr.label, 0)
			tr.must(err)
			_, err = sb.Destroy(tr.ctx)
			tr.must(err)
		},
		act: func() {
			child, err := tr.c.Create(tr.ctx, client.CreateOptions{Snapshot: tr.label, Name: tr.label})
			if err == nil {
				tr.promise("sandbox "+child.ID(), func() error { return tr.intact(child.ID(), n) })
			}
			if err = tr.c.RemoveSnapshot(tr.ctx, tr.label); err == nil {
				tr.promise("removal", func() error {
					_, err := tr.c.Create(tr.ctx, client.CreateOptions{Snapshot: tr.label})
					if sandbox.KindOf(err) != sandbox.KindNotFound {
						return fmt.Errorf("of a snapshot that was removed: %v", err)
					}
					return nil
				})
			}
		},
		after: func() {
			if id := tr.named(tr.label); id != "" {
				if err := tr.intact(id, n); err != nil {
					tr.errorf("%v", err)
				}
			}
			list, err := tr.c.Snapshots(tr.ctx)
			for _, s := range list {
				if s.GetName() == tr.label && err == nil {
					err = tr.c.RemoveSnapshot(tr.ctx, s.GetId())
				}
			}
			if err != nil {
				tr.errorf("%v", err)
			}
		},
	}
}

// splits forks a sandbox. Whenever the server dies, its children are whole or there are
// none, each under one name; what they were made of is gone; and their parent goes on.
func splits(tr *trial) scenario {
	var sb *client.Sandbox
	names := []string{tr.label + "-left", tr.label + "-right"}
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			tr.remembers(sb)
		},
		act: func() {
			tr.promise("sandbox "+sb.ID(), func() error { return tr.remembered(sb.ID()) })
			children, err := sb.Fork(tr.ctx, client.ForkOptions{Names: names})
			if err != nil {
				return
			}
			for _, c := range children {
				if c.Err != nil {
					tr.errorf("a child: %v", c.Err)
					continue
				}
				tr.promise("child "+c.ID(), func() error { return tr.remembered(c.ID()) })
			}
		},
		after: func() {
			draws := map[string]bool{}
			for _, name := range names {
				id := tr.named(name)
				if id == "" {
					continue
				}
				if err := tr.remembered(id); err != nil {
					tr.errorf("%v", err)
				}
				t, err := eval(tr, id, "import random\nrandom.random()")
				if err != nil || draws[t.text] {
					tr.errorf("%s draws %s, as the other did: %v", id, t.text, err)
				}
				draws[t.text] = true
			}
			if list, err := tr.c.Snapshots(tr.ctx); err != nil || len(list) != 0 {
				tr.errorf("a fork left %v, %v", list, err)
			}
			if err := tr.remembered(sb.ID()); err != nil {
				tr.errorf("%v", err)
			}
		},
	}
}

// splitsOnce forks a sandbox under an idempotency key, which the caller, not knowing what
// became of it, uses again.
func splitsOnce(tr *trial) scenario {
	var sb *client.Sandbox
	o := client.ForkOptions{Names: []string{tr.label + "-left", tr.label + "-right"}, IdempotencyKey: tr.label}
	again := func() (ids []string, err error) {
		children, err := tr.c.Sandbox(sb.ID()).Fork(tr.ctx, o) // of the server that is there now
		for _, c := range children {
			if err = errors.Join(err, c.Err); err == nil {
				ids = append(ids, c.ID())
				err = tr.remembered(c.ID())
			}
		}
		return ids, err
	}
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			tr.remembers(sb)
		},
		act: func() {
			if ids, err := again(); err == nil {
				tr.promise("idempotency key", func() error {
					if now, err := again(); err != nil || !slices.Equal(now, ids) {
						return fmt.Errorf("it answers %v, %v, not %v", now, err, ids)
					}
					return nil
				})
			}
		},
		after: func() {
			first, err := again()
			second, err2 := again()
			if err != nil || err2 != nil || len(first) != 2 || !slices.Equal(first, second) {
				tr.errorf("the key answers %v, %v, then %v, %v", first, err, second, err2)
				return
			}
			for i, name := range o.Names {
				if id := tr.named(name); id != first[i] {
					tr.errorf("%q is %s, and the key answers %v", name, id, first)
				}
			}
		},
	}
}
