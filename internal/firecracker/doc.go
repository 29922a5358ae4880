// Package firecracker is a client of Firecracker's API, and knows how its jailer
// is called: as much of both as a sandbox needs.
//
//	c := firecracker.New(func(ctx context.Context) (net.Conn, error) { return dial(…, "api.sock") })
//	v, err := c.Version(ctx)                       // and Supported(v)
//	err = c.Configure(ctx, firecracker.Machine{…}) // in the order Firecracker wants
//	err = c.Start(ctx)
//	conn, err := firecracker.Connect(conn, 1024)   // of the vsock's socket, to a port of the guest
//
//	err = c.Pause(ctx)
//	err = c.CreateSnapshot(ctx, "/state", "/memory")
//	err = c.LoadSnapshot(ctx, "/state", "/memory", true) // into a process that was not configured
//
// Paths are those the Firecracker process sees, which in a jail begin at its root.
//
// What answers is a process that a guest may have taken over: answers have a
// bounded size, and nothing in them is trusted beyond whether it worked.
package firecracker
