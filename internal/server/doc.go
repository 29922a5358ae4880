// Package server puts the operations on the wire: Connect, gRPC, gRPC-Web, REST
// with JSON, and server-sent events, all on one listener, and the same again on
// a local unix socket.
//
//	srv, err := server.New(server.Config{API: svc, Auth: authenticator, Log: log})
//	tcp, err := server.ListenTCP(ctx, "127.0.0.1:7878")
//	local, err := server.ListenUnix("/run/firebreak/firebreak.sock", 0o600)
//	err = srv.Serve(ctx, tcp, local)        // until ctx ends, then drains
//
// register.go holds the one table: a line there is a method on every surface.
// Paths, scopes and rules come from the proto; New refuses a proto method that
// the table does not name, and a method that declares no scope.
//
// # The way of a request
//
//  1. Host: on a loopback listener, a name that is not ours is refused, so that
//     a web page cannot reach the API by rebinding its own name.
//  2. Route, by a router that never redirects.
//  3. Who: an API key over TCP; over the unix socket the kernel's word for the
//     caller's uid. There is no way to turn this off.
//  4. May they: the scope the method declares. Only then the body is read.
//  5. Decode strictly, check the rules in the proto, call the operation under
//     its deadline. A caller that goes away cancels the operation.
//  6. One log line, one metric. The audit log is the operations' affair.
//
// # Errors
//
// REST answers {"error":{"kind","message","hint","op","id"}} with a status;
// Connect and gRPC carry the same as an ErrorDetail. errors.go holds the one
// table from kind to codes.
package server
