package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// ErrRefused: nobody listens at the guest's port, or not yet.
var ErrRefused = errors.New("firecracker: the guest does not listen")

// Connect asks for a port of the guest on a fresh connection to the vsock's socket,
// and returns once the guest has accepted. From then on the connection is the
// guest's. It is closed on an error.
func Connect(ctx context.Context, conn net.Conn, port uint32) (err error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
		}
	}()
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	// A byte at a time: what follows the line is the guest's.
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := conn.Read(b)
		if n == 0 && err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		if n == 0 {
			continue
		}
		if b[0] == '\n' {
			break
		}
		if line = append(line, b[0]); len(line) > 32 {
			return errors.New("firecracker: no answer to CONNECT")
		}
	}
	number, ok := strings.CutPrefix(string(line), "OK ")
	if _, err := strconv.ParseUint(number, 10, 32); !ok || err != nil {
		return fmt.Errorf("firecracker: CONNECT was answered with %q", line)
	}
	return nil
}
