package control

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Run is the program of a router: it confines itself and serves the keeper at
// descriptor 3 until that, or ctx, ends. Errors: KindUnsupported if no keeper
// started it, KindProtocol.
func Run(ctx context.Context) error {
	const hint = "servers start it themselves, where a sandbox has a policy"
	// Signals are for the keeper, which asks the router to stop: those that a terminal
	// or an init system sends to all processes of a service come to both.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	notes, err := Confine()
	if err != nil {
		return sandbox.Errorf("router", sandbox.KindUnsupported, "%w", err).WithHint(hint)
	}
	log.SetOutput(io.Discard) // net/http's, which quotes what hosts say
	unix.Close(4)             // the program, which it was executed by
	f := os.NewFile(3, "keeper")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return sandbox.Errorf("router", sandbox.KindUnsupported, "descriptor 3: %w", err).WithHint(hint)
	}
	keeper, ok := conn.(*net.UnixConn)
	if !ok || conn.LocalAddr().Network() != "unixpacket" {
		conn.Close()
		return sandbox.Errorf("router", sandbox.KindUnsupported, "descriptor 3 is no keeper").WithHint(hint)
	}
	said := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := Serve(ctx, keeper, ServeOptions{Logger: said, Notes: notes}); err != nil {
		return sandbox.Errorf("router", sandbox.KindProtocol, "%w", fmt.Errorf("what the server says: %w", err))
	}
	return nil
}
