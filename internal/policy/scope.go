package policy

import "net/netip"

// Scope is whom a table lets a sandbox speak TLS with that is looked into.
type Scope struct {
	// Names are sorted: "example.com" is that name, ".example.com" what is below it.
	Names    []string
	Networks []netip.Prefix // sorted
	Any      bool           // whatever nothing denies, too
}
