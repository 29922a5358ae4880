package egress

import (
	"os"

	"github.com/firebreak-dev/firebreak/internal/egress/dns"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// wire is one that is served.
type wire struct {
	router  *Router
	id      string
	live    *policy.Live
	account *policy.Accountant
	pool    *dns.Pool
	tap     *os.File
}

func newWire(r *Router, w Wire, tap *os.File) (*wire, error) {
	return &wire{router: r, id: w.ID, live: policy.NewLive(w.Table), account: policy.Restore(w.Used), pool: dns.NewPool(w.Epoch), tap: tap}, nil
}

// end closes everything and waits.
func (w *wire) end() map[string]policy.Used {
	w.tap.Close()
	return w.account.All()
}
