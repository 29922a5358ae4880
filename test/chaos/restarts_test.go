package chaos

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/client"
)

// laysTemplate creates a sandbox whose template is not there any more.
func laysTemplate(tr *trial) scenario {
	return scenario{
		before: func() { tr.must(tr.c.RemoveTemplate(tr.ctx, "host")) },
		act: func() {
			if sb, err := tr.c.Create(tr.ctx, client.CreateOptions{}); err == nil {
				tr.alive(sb.ID())
			}
		},
		after: func() { tr.newSandbox(client.CreateOptions{}) }, // works: the template is whole
	}
}

// buildsTemplate builds a template from an archive.
func buildsTemplate(tr *trial) scenario {
	archive := func() io.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, f := range []struct{ name, text string }{{"bin/sh", "#!"}, {"label", tr.label}, {"big", strings.Repeat("big ", 100_000)}} {
			tr.must(w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.text))}))
			_, err := io.WriteString(w, f.text)
			tr.must(err)
		}
		tr.must(w.Close())
		return &b
	}
	build := func() (string, error) {
		t, err := tr.c.BuildTemplateFrom(tr.ctx, client.TemplateOptions{Name: tr.label, Archive: archive()}, nil)
		return t.GetDigest(), err
	}
	return scenario{
		act: func() {
			if digest, err := build(); err == nil {
				tr.promise("template", func() error {
					list, err := tr.c.Templates(tr.ctx)
					for _, t := range list {
						if t.GetName() == tr.label && t.GetDigest() == digest && t.GetState() == "built" {
							return err
						}
					}
					return fmt.Errorf("it is not among %v, %v", list, err)
				})
			}
		},
		after: func() {
			if _, err := build(); err != nil {
				tr.errorf("it cannot be built any more: %v", err)
			}
			if err := tr.c.RemoveTemplate(tr.ctx, tr.label); err != nil {
				tr.errorf("it cannot be removed: %v", err)
			}
		},
	}
}

func removesTemplate(tr *trial) scenario {
	return scenario{
		before: func() {
			_, err := tr.newSandbox(client.CreateOptions{}).Destroy(tr.ctx)
			tr.must(err)
		},
		act:   func() { _ = tr.c.RemoveTemplate(tr.ctx, "host") },
		after: func() { tr.newSandbox(client.CreateOptions{}) },
	}
}

// stops ends the server as an operator does: its sandboxes live on.
func stops(tr *trial) scenario {
	var sb *client.Sandbox
	return scenario{
		before: func() { sb = tr.newSandbox(client.CreateOptions{}) },
		act: func() {
			tr.alive(sb.ID())
			tr.must(tr.server.cmd.Process.Signal(syscall.SIGTERM))
			select {
			case <-tr.server.dead:
			case <-time.After(patience):
				tr.errorf("the server does not stop")
			}
		},
	}
}

// startsFirst starts a server on an empty data directory.
func startsFirst(tr *trial) scenario {
	return scenario{
		starts: true,
		before: func() {
			tr.kill()
			entries, err := os.ReadDir(tr.world.data)
			tr.must(err)
			for _, e := range entries {
				if e.Name() != "instances" && e.Name() != "wires" && e.Name() != "run" && e.Name() != "processes" { // the oracle knows them from before
					tr.must(os.RemoveAll(filepath.Join(tr.world.data, e.Name())))
				}
			}
			tr.evidence = 0
		},
		act:   func() { tr.start() },
		after: func() { tr.newSandbox(client.CreateOptions{}) },
	}
}

// adopts starts a server where a killed one left two sandboxes, one of them
// while it was being destroyed.
func adopts(tr *trial) scenario {
	return scenario{
		starts: true,
		before: func() {
			sb := tr.newSandbox(client.CreateOptions{})
			_, err := sb.WriteFile(tr.ctx, "file", strings.NewReader("kept"), 0o644)
			tr.must(err)
			doomed := tr.newSandbox(client.CreateOptions{})
			tr.say(tr.t, "end/after-intent")
			if _, err := doomed.Destroy(tr.ctx); err == nil || !tr.dead() {
				tr.t.Fatalf("%s: the server outlived its failpoint: %v", tr.name, err)
			}
			tr.kills++
			tr.say(tr.t, "")
			tr.look()
			tr.alive(sb.ID())
			tr.content(sb.ID(), "file", "kept")
		},
		act: func() { tr.start() },
	}
}
