// Package agent is the guest side of Firebreak's protocol: it serves exec and
// files to whoever holds the other end of a stream.
//
//	srv := agent.New(sys, version)
//	err := srv.Serve(ctx, conn)    // until the stream fails
//	srv.Close()
//
// A Server outlives its connections: programs go on when the host vanishes, and
// the next connection takes them up. It serves one connection at a time; a new
// Serve ends the previous one.
//
// What is specific to a machine is behind System. NewLinux is the real one, for
// firebreak-guest; a backend without a kernel of its own supplies a model.
//
// The agent is the trusted part of a sandbox only as far as the sandbox goes:
// it enforces limits inside, drops privileges for user code and reports typed
// reasons, while the host treats all it says as hostile and has its own limits
// behind it.
package agent
