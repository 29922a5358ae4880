// Package auth turns a credential into a Principal and decides what it may do.
//
//	a := auth.New(st, auth.Options{})                       // *store.Store
//	defer a.Close()
//	path, err := a.Bootstrap(ctx, dataDir, nil)             // the first key, 0600
//
//	p, err := a.Bearer(ctx, token)                          // an API key over TCP
//	p, err = a.Peer(uid)                                    // the caller's uid over the local socket
//	ctx = auth.WithPrincipal(ctx, p)
//	…
//	p, err = auth.Require(ctx, auth.SandboxWrite)           // in the operation
//	t := st.Tenant(p.Tenant)                                // all it can reach
//
// # API keys
//
// A key reads fb_<id>_<secret>_<sum>: ten characters that name it, 32 of
// [0-9A-Za-z] that prove it (190 random bits), and six that let a mistyped
// key, or a scanner for leaked ones, be answered without a look at the store.
// Only the SHA-256 of the secret is kept: at that entropy a slow hash would
// add nothing but a way to exhaust the CPU. The token is shown once.
package auth
