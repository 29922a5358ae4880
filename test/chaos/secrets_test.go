package chaos

import (
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// setsSecrets sets a secret twice and binds it. Afterwards it opens, as the value that
// was acknowledged last or as the next one.
func setsSecrets(tr *trial) scenario {
	name := tr.label
	values := []string{"first-" + name, "second-" + name}
	acked := -1
	opens := func() error {
		got, err := tr.opened(name)
		if err == nil && (acked < 0 || got != values[acked]) && (acked+1 == len(values) || got != values[acked+1]) {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	}
	return scenario{
		act: func() {
			for i, v := range values {
				if _, err := tr.c.SetSecret(tr.ctx, name, v); err != nil {
					return
				}
				acked = i
				tr.effects = append(tr.effects, effect{"secret.set", ""})
				if i == 0 {
					tr.promise("secret", opens)
				}
			}
			if _, err := tr.c.AddBinding(tr.ctx, client.Binding{Name: name, Secret: name, Host: "api.example.com"}); err != nil {
				return
			}
			tr.effects = append(tr.effects, effect{"binding.set", ""})
			tr.promise("binding", func() error {
				b, err := tr.c.Binding(tr.ctx, name)
				if err == nil && b.GetSecret() != name {
					err = fmt.Errorf("it is of %q", b.GetSecret())
				}
				return err
			})
		},
		after: func() {
			if err := opens(); err != nil && sandbox.KindOf(err) != sandbox.KindNotFound {
				tr.errorf("the secret: %v", err)
			}
			if _, err := tr.c.Binding(tr.ctx, name); err == nil {
				if err := tr.c.RemoveSecret(tr.ctx, name); sandbox.KindOf(err) != sandbox.KindConflict {
					tr.errorf("the secret of a binding was removed: %v", err)
				}
				tr.must(tr.c.RemoveBinding(tr.ctx, name))
			}
			if err := tr.c.RemoveSecret(tr.ctx, name); err != nil && sandbox.KindOf(err) != sandbox.KindNotFound {
				tr.errorf("the secret is not removed: %v", err)
			}
		},
	}
}

// opened is the value of a secret of the server's, which gives none back: what is on
// its disk is opened with the key beside it.
func (tr *trial) opened(name string) (value string, err error) {
	file := filepath.Join(tr.t.TempDir(), fmt.Sprint(name, ".db"))
	if _, err := store.Snapshot(tr.ctx, filepath.Join(tr.world.data, "state.db"), file); err != nil {
		return "", err
	}
	st, err := store.Open(tr.ctx, file, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer st.Close()
	s, err := broker.New(filepath.Join(tr.world.data, "secrets"), service.FindSecret(st)).Get(tr.ctx, sandbox.DefaultTenant, name)
	if err != nil {
		return "", err
	}
	defer s.Destroy()
	s.Use(func(b []byte) { value = string(b) })
	return value, nil
}
