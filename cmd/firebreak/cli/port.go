package cli

import (
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) portForwardCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "port-forward ID [LOCAL:]PORT...",
		Short: "Reach servers in a sandbox from this machine",
		Long: `Port-forward listens on this machine's loopback and connects whoever comes to a
port in the sandbox, until it is interrupted. The sandbox needs no network for it,
and gets none. LOCAL is PORT if left out; 0 takes a free one.`,
		Example:           "  firebreak exec --detach $id -- python3 -m http.server 8000\n  firebreak port-forward $id 8080:8000",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var ports [][2]int
			for _, arg := range args[1:] {
				p, err := parsePorts(arg)
				if err != nil {
					return err
				}
				ports = append(ports, p)
			}
			return a.withSession(cmd, func(s *session) error { return a.forward(cmd.Context(), s.Sandbox(args[0]), ports) })
		},
	}
}

// parsePorts reads [LOCAL:]PORT.
func parsePorts(s string) (p [2]int, err error) {
	local, remote, both := strings.Cut(s, ":")
	if !both {
		remote = local
	}
	for i, v := range []string{local, remote} {
		n, err := strconv.Atoi(v)
		if err != nil || n < i || n > 65535 {
			return p, sandbox.Errorf("", sandbox.KindInvalid, "%q is not [LOCAL:]PORT", s).WithHint("8000, or 8080:8000")
		}
		p[i] = n
	}
	if p[1] == 0 {
		return p, sandbox.Errorf("", sandbox.KindInvalid, "%q names no port in the sandbox", s).WithHint("8000, or 8080:8000")
	}
	return p, nil
}

// forward serves ports until ctx ends.
func (a *App) forward(ctx context.Context, sb *client.Sandbox, ports [][2]int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	info, err := sb.Info(ctx)
	if err != nil {
		return err
	}
	if info.GetState() == "ended" {
		return sandbox.Errorf("port-forward", sandbox.KindGone, "the sandbox has ended: %s", info.GetReason()).WithID(sb.ID())
	}
	var serving sync.WaitGroup
	defer serving.Wait()
	for _, p := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p[0]))
		if err != nil {
			cancel()
			return sandbox.Errorf("port-forward", sandbox.KindUnavailable, "%w", err).WithHint("choose another local port, or 0")
		}
		stop := context.AfterFunc(ctx, func() { l.Close() })
		a.say("%s reaches port %d of %s", l.Addr(), p[1], sb.ID())
		serving.Go(func() {
			defer stop()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { a.relay(ctx, sb, p[1], c) })
			}
		})
	}
	<-ctx.Done()
	return nil
}

// lastWords is how long somebody may go on talking to a server that has said all.
const lastWords = time.Minute

// relay joins a connection to a port of the sandbox until both sides have said all,
// or one is gone.
func (a *App) relay(ctx context.Context, sb *client.Sandbox, port int, c net.Conn) {
	defer c.Close()
	up, err := sb.DialPort(ctx, port)
	if err != nil {
		if ctx.Err() == nil {
			a.say("%s", visible(err.Error()))
		}
		return
	}
	end := sync.OnceFunc(func() { up.Close(); c.Close() })
	defer end()
	defer context.AfterFunc(ctx, end)()
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := io.Copy(up, c); err != nil || up.CloseWrite() != nil { // the end of input leaves the answer to come
			end()
		}
	})
	_, err = io.Copy(c, up)
	half, ok := c.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(lastWords)) != nil {
		end()
	}
	both.Wait()
}
