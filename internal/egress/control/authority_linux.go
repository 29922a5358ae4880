package control

import (
	"bytes"
	"errors"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/egress/authority"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// checkAuthority holds an authority on its way against what one is in size. What
// else it has to be the router says.
func checkAuthority(a *authority.Authority) error {
	if a == nil || len(a.Certificate) == 0 || len(a.Certificate) > authority.MaxCertificate || len(a.Key) == 0 || len(a.Key) > authority.MaxKey {
		return errors.New("no authority, or one of a size that none has")
	}
	return nil
}

// derive makes the authority of a wire: for the hosts that its policies name, and
// those of its bindings. The caller does not hold mu.
func (k *Keeper) derive(id string, t *policy.Table, bindings []egress.Binding) (*authority.Authority, error) {
	k.mu.Lock()
	seed, closed := bytes.Clone(k.seed), k.closed
	k.mu.Unlock()
	defer clear(seed)
	if closed {
		return nil, sandbox.Errorf("egress", sandbox.KindUnavailable, "the router is being stopped").WithID(id)
	}
	s := t.Scope()
	s.Names = s.Names[:len(s.Names):len(s.Names)] // the table is shared
	for i := range bindings {
		if h, err := netaddr.ParseHost(bindings[i].Host); err == nil && h.Name() != "" { // else the router refuses it
			s.Names = append(s.Names, h.Name())
		}
	}
	a, err := authority.Derive(seed, id, s, time.Now())
	if err == nil {
		err = checkAuthority(a)
	}
	return a, err
}

// Authority is the certificate, in PEM, of whom a wire's sandbox is to trust now;
// nil of a wire that is not attached.
func (k *Keeper) Authority(id string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.wires[id]
	if w == nil || w.tap == nil {
		return nil
	}
	return w.authority.PEM()
}
