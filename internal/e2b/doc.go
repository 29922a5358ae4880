// Package e2b serves the wire of E2B's published clients, unmodified, over the
// operations of internal/service: what they do is authorised, recorded and
// bounded as on every other surface.
//
//	s, err := e2b.New(e2b.Config{API: svc, Auth: keys, Door: srv, Log: log})
//	err = srv.Serve(ctx, api, listener.Serve("e2b", s))
//
// One listener takes all of it. A request that names a sandbox and a port, by
// E2B's headers or by its host name, goes to that sandbox; one for /files with a
// signature goes to the sandbox whose token made it; any other is the control
// API's.
//
//	control API      X-API-Key                 /sandboxes, /v2/sandboxes, …
//	port 49983       X-Access-Token            process.Process, filesystem.Filesystem, /files, /health
//	port 49999       either token              /execute, /contexts: the code interpreter
//	other ports      E2B-Traffic-Access-Token  a server inside, HTTP and WebSocket
//
// What a client asks for and this server does not do yet is refused, with one
// text, in one place (notyet.go); a security setting is never ignored.
package e2b
