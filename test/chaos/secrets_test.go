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
	acked, bound := -1, false
	return scenario{
		act: func() {
			for i, v := range values {
				if _, err := tr.c.SetSecret(tr.ctx, name, v); err != nil {
					return
				}
				acked = i
			}
			if _, err := tr.c.AddBinding(tr.ctx, client.Binding{Name: name, Secret: name, Host: "api.example.com"}); err == nil {
				bound = true
			}
		},
		after: func() {
			got, err := tr.opened(name)
			switch {
			case sandbox.KindOf(err) == sandbox.KindNotFound && acked < 0:
			case err != nil:
				tr.errorf("the secret: %v", err)
			case acked >= 0 && got == values[acked], acked+1 < len(values) && got == values[acked+1]:
			default:
				tr.errorf("the secret is %q, %d were acknowledged", got, acked+1)
			}
			if b, err := tr.c.Binding(tr.ctx, name); bound && (err != nil || b.GetSecret() != name) {
				tr.errorf("the binding: %v, %v", b, err)
			} else if err == nil {
				if err := tr.c.RemoveSecret(tr.ctx, name); sandbox.KindOf(err) != sandbox.KindConflict {
					tr.errorf("the secret of a binding was removed: %v", err)
				}
				tr.must(tr.c.RemoveBinding(tr.ctx, name))
			}
			if got != "" {
				tr.must(tr.c.RemoveSecret(tr.ctx, name))
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
