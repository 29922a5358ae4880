package chaos

import (
	"bytes"
	"fmt"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/archive"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// turn is what a context said.
type turn struct {
	out, text string
	end       client.TurnEnd
}

func eval(tr *trial, id, code string) (turn, error) {
	var out bytes.Buffer
	var t turn
	end, err := tr.c.Sandbox(id).Eval(tr.served(), client.Code{Source: code, Language: "python"}, client.TurnHandler{Stdout: &out,
		Result: func(r *v1.EvalResult) error { t.text = r.GetText(); return nil }})
	t.out, t.end = out.String(), end
	return t, err
}

// evals runs a turn in a warm context. It happens once or not at all, and whatever
// becomes of its servers the context lives and knows what it knew.
func evals(tr *trial) scenario {
	var sb *client.Sandbox
	// known is what the context, and the file beside it, remember.
	known := func() (turns int, err error) {
		t, err := eval(tr, sb.ID(), "x, len(open('turns').read())")
		if err != nil || t.end.Reason != sandbox.ReasonDone {
			return 0, fmt.Errorf("%+v, %v", t, err)
		}
		var x, file int
		if n, _ := fmt.Sscanf(t.text, "(%d, %d)", &x, &file); n != 2 || x != file {
			return 0, fmt.Errorf("it knows %s", t.text)
		}
		return x, nil
	}
	return scenario{
		before: func() {
			sb = tr.newSandbox(client.CreateOptions{})
			_, err := eval(tr, sb.ID(), "open('turns', 'w').write('1')\nx = 1")
			tr.must(err)
		},
		act: func() {
			tr.alive(sb.ID())
			t, err := eval(tr, sb.ID(), "x += 1\nopen('turns', 'a').write('1')\nprint('printed ' * 1000)\nx")
			if err == nil && t.end.Reason == sandbox.ReasonDone {
				if t.text != "2" || t.out != strings.Repeat("printed ", 1000)+"\n" {
					tr.errorf("the turn showed %q, and %d bytes of output", t.text, len(t.out))
				}
				tr.promise("turn", func() error {
					if n, err := known(); err != nil || n != 2 {
						return fmt.Errorf("%d turns are known, %v", n, err)
					}
					return nil
				})
			}
		},
		after: func() {
			n, err := known()
			if err != nil || n != 1 && n != 2 {
				tr.errorf("%d turns are known, %v", n, err)
			}
			if n == 2 {
				tr.effects = append(tr.effects, effect{"context.eval", sb.ID()})
			}
		},
	}
}

// unpacks stores an archive. Each of its files is there whole or not at all, the
// later only with the earlier.
func unpacks(tr *trial) scenario {
	var sb *client.Sandbox
	names := []string{"a", "d/b", "d/c"}
	text := func(name string) string { return strings.Repeat("content of "+name+" ", 10_000) }
	return scenario{
		before: func() { sb = tr.newSandbox(client.CreateOptions{}) },
		act: func() {
			tr.alive(sb.ID())
			n, err := sb.WriteArchive(tr.ctx, "tree", archiveOf(tr, names, text))
			if err == nil && n.GetFiles() == int64(len(names)) {
				for _, name := range names {
					tr.content(sb.ID(), "tree/"+name, text(name))
				}
			}
		},
		after: func() {
			missing := false
			for _, name := range names {
				got, there := tr.read(sb.ID(), "tree/"+name)
				if there && (got != text(name) || missing) {
					tr.errorf("%s has %d bytes; one before it is missing: %v", name, len(got), missing)
				}
				if missing = missing || !there; there {
					tr.effects = append(tr.effects, effect{"file.write", sb.ID()})
				}
			}
		},
	}
}

func archiveOf(tr *trial, names []string, text func(string) string) *bytes.Buffer {
	var b bytes.Buffer
	w := archive.NewWriter(&b)
	for _, name := range names {
		tr.must(w.Add(archive.Entry{Path: name, Mode: 0o644, Size: int64(len(text(name)))}, strings.NewReader(text(name))))
	}
	tr.must(w.Close())
	return &b
}
