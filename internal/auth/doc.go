// Package auth turns a credential into a Principal and decides what it may do.
//
//	a := auth.New(st, auth.Options{})                       // *store.Store
//	p, err := a.Bearer(ctx, token)                          // an API key over TCP
//	p, err = a.Peer(uid)                                    // the caller's uid over the local socket
//	ctx = auth.WithPrincipal(ctx, p)
//	…
//	p, err = auth.Require(ctx, auth.SandboxWrite)           // in the operation
//	t := st.Tenant(p.Tenant)
package auth
