// Package pool keeps instances ready before anybody asks for them: booted, their
// agent answering, an interpreter waiting for its program. It is a Backend over a
// Backend, and what it cannot give from its stock it has made by that.
//
//	p := pool.New(backend, pool.Options{Stock: stock, Log: log})
//	if c, ok := p.Claim(spec); ok {
//		spec.Instance, spec.Sandbox = c.Instance, c.Sandbox
//	}
//	inst, err := p.Create(ctx, spec) // at once, if it was claimed
//
// An entry serves one sandbox and is not taken back. It is made for one tenant, from
// a template, with limits, and nothing else; what asks for more, as a network, is not
// served from stock. So there is nothing of anybody's in it, and no policy of it can
// be stale.
//
// The backend has journalled an entry like any instance when it was made. Whoever is
// not claimed when this process dies is an instance without a record, which the next
// one destroys.
package pool
