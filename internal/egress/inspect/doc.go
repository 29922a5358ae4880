// Package inspect speaks HTTP with a sandbox and sends what it asks for on: to the
// host that it names itself, or, with a secret added that the sandbox never sees, to
// the one that a binding is for.
//
//	p, err := inspect.New(inspect.Options{Dial: dial, Ask: ask, Reach: reach}, targets)
//	p.Serve(ctx, conn, "openai")             // a connection to a binding
//	c, no := inspect.Accept(ctx, conn, inspect.ServerConfig(), timeout, certificate)
//	p.Visit(ctx, c, &inspect.Visit{Site: site, Generation: 1, Ask: asker})
//	p.Close()
//
// A connection is one front, HTTP/1.1 or HTTP/2, and one route, a binding or a site.
// Each request on it is an exchange: it is read, refused if two readers could take it
// for two things or if it is for another host than the connection, asked about, and
// written anew from what was understood. Nothing is spliced, and no connection to a
// host is shared between routes. Of HTTP/1.1 the head is read byte by byte before
// net/http reads it; HTTP/2 is net/http's.
//
// A WebSocket is an exchange that goes on in frames, which are read and written anew
// as well.
//
// A request that holds one of the secrets, as it is or encoded, goes nowhere, and
// where one stands in a response there are stars instead.
package inspect
