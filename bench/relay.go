package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/test/internet"
)

const relayTo = "FIREBREAK_BENCH_RELAY"

// ServeRelay is the process of startRelay; elsewhere it returns at once. It ends
// connections in the kernel and makes others in their place, to the same port of
// one address: what a userspace network is compared with. Nothing is looked at,
// and the kernel moves the bytes.
func ServeRelay() {
	to := os.Getenv(relayTo)
	if to == "" {
		return
	}
	for _, port := range relayed {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", port))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			for {
				in, err := l.Accept()
				if err != nil {
					continue
				}
				go relay(in.(*net.TCPConn), net.JoinHostPort(to, fmt.Sprint(port)))
			}
		}()
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func relay(in *net.TCPConn, to string) {
	defer in.Close()
	conn, err := net.Dial("tcp4", to)
	if err != nil {
		return
	}
	out := conn.(*net.TCPConn)
	defer out.Close()
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(out, in)
		out.CloseWrite()
	})
	io.Copy(in, out)
	in.CloseWrite()
	up.Wait()
}

// startRelay starts a relay to an address on the host of n. It ends with this
// process.
func startRelay(n *internet.Internet, to netip.Addr) (end func(), err error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), relayTo+"="+to.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.Start(cmd); err != nil {
		return nil, err
	}
	end = func() { in.Close(); cmd.Wait() }
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
		end()
		return nil, fmt.Errorf("the relay says %q: %w", line, err)
	}
	return end, nil
}

// plain makes networks for sandboxes that lead to the kernel of an internet's
// host: a veth each, with a subnet of its own.
type plain struct {
	n   *internet.Internet
	dir string

	mu    sync.Mutex
	wires []sandbox.InstanceID // guarded by mu; in the order of their subnets
}

var _ orchestrator.Network = (*plain)(nil)

// Open implements orchestrator.Network. The policy is nobody's business.
func (p *plain) Open(_ context.Context, id sandbox.InstanceID, _ orchestrator.Egress) (*sandbox.Wire, error) {
	p.mu.Lock()
	p.wires = append(p.wires, id)
	i := byte(len(p.wires))
	p.mu.Unlock()
	gateway, guest := netip.AddrFrom4([4]byte{10, 201, i, 1}), netip.AddrFrom4([4]byte{10, 201, i, 2})
	path, peer := filepath.Join(p.dir, string(id)), fmt.Sprintf("plain%d", i)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	err := p.n.OnHost(func() error { // which is left behind by the thread, and gone back to
		host, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer host.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: peer, PeerNamespace: netlink.NsFd(host.Fd())}); err != nil {
			return err
		}
		return errors.Join(raise("lo", netip.Addr{}), raise("eth0", guest))
	})
	if err == nil {
		err = p.n.OnHost(func() error { return raise(peer, gateway) })
	}
	if err == nil {
		err = p.route(path, gateway)
	}
	if err != nil {
		_, left := p.Close(context.Background(), id)
		return nil, errors.Join(fmt.Errorf("make a plain network: %w", err), left)
	}
	return &sandbox.Wire{NetNS: path, Link: "eth0", Address: netip.PrefixFrom(guest, 30), Gateway: gateway}, nil
}

// gateway is where a sandbox reaches the relay.
func (p *plain) gateway(id sandbox.InstanceID) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return netip.AddrFrom4([4]byte{10, 201, byte(slices.Index(p.wires, id) + 1), 1}).String()
}

// route sends everything from a namespace to its gateway, now that both ends are
// up.
func (p *plain) route(path string, gateway netip.Addr) error {
	return p.n.OnHost(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()})
	})
}

// raise brings up a link of the namespace this thread is in, with an address
// unless that is none.
func raise(name string, a netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if a.IsValid() {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(30, 32)}}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// Adopt implements orchestrator.Network.
func (p *plain) Adopt(context.Context, sandbox.InstanceID, orchestrator.Egress) (string, error) {
	return "", nil
}

// Update implements orchestrator.Network.
func (p *plain) Update(context.Context, sandbox.InstanceID, orchestrator.Egress) (uint64, int, error) {
	return 0, 0, errors.ErrUnsupported
}

// Close implements orchestrator.Network. The veth goes with its namespace.
func (p *plain) Close(_ context.Context, id sandbox.InstanceID) ([]sandbox.Object, error) {
	path := filepath.Join(p.dir, string(id))
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return nil, nil
}

// List implements orchestrator.Network.
func (p *plain) List(context.Context) ([]sandbox.InstanceID, error) { return nil, nil }
