//go:build linux

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// plugged is a wire with a machine's link on it, unplugged when the test ends.
func plugged(t *testing.T) (l *Link, machine *os.File) {
	t.Helper()
	l = open(t, wiresIn(t), newID())
	machine, err := Machines{}.Plug(l.Wire, "machine", 0)
	if err == nil {
		err = Machines{}.Connect(l.Wire)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		machine.Close()
		unplugged(t, l.Wire)
	})
	return l, machine
}

// unplugged removes what Plug made.
func unplugged(t *testing.T, w sandbox.Wire) {
	t.Helper()
	objects, err := Machines{}.Unplug(w.NetNS)
	if err != nil || len(objects) != 1 || !objects[0].Gone {
		t.Errorf("Unplug: %+v, %v", objects, err)
	}
}

// write writes a frame at one end.
func write(t *testing.T, tap *os.File, frame []byte) error {
	t.Helper()
	_, err := tap.Write(append(make([]byte, headerSize), frame...))
	return err
}

// TestPlugged sends frames as a machine that was taken over could, and as a router
// could: what the filter lets through arrives at the other end as it was, and
// nothing else does.
func TestPlugged(t *testing.T) {
	l, machine := plugged(t)
	fromGood, fromBad := fromGuest()
	to := func(p byte, body []byte) []byte {
		return ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(p, world, guest, body))
	}
	answer, ack := to(unix.IPPROTO_UDP, udp(DNSPort, 1000, "answer")), to(unix.IPPROTO_TCP, tcp(443, 1000))
	toGood := map[string][]byte{"answer": answer, "ack": ack, "arp": ether(broadcast, GatewayMAC, unix.ETH_P_ARP, arp(1, GatewayMAC, gateway, guest))}
	toBad := map[string][]byte{
		"udp of another port": to(unix.IPPROTO_UDP, udp(54, DNSPort, "x")),
		"icmp":                to(unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}),
		"from a stranger":     changed(ack, atSource, stranger...),
		"as broadcast":        changed(ack, 0, broadcast...),
		"to another address":  ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, world, [4]byte{10, 200, 0, 3}, tcp(1, 2))),
		"a first fragment":    resealed(answer, atFragment, 0x20, 0),
		"with options":        ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, changed(options(1, 1), 0)),
		"vlan":                slices.Concat(ack[:12], u16(unix.ETH_P_8021Q), u16(0), ack[12:]),
		"ipv6":                changed(ack, atEtherType, 0x86, 0xdd),
		"arp of a stranger":   ether(broadcast, stranger, unix.ETH_P_ARP, arp(1, stranger, gateway, guest)),
	}
	for _, way := range []struct {
		name      string
		in, out   *os.File
		good, bad map[string][]byte
		mark      []byte
	}{
		{"from the machine", machine, l.Tap, fromGood, fromBad, ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, guest, gateway, udp(1, DNSPort, "mark")))},
		{"to the machine", l.Tap, machine, toGood, toBad, to(unix.IPPROTO_UDP, udp(DNSPort, 1, "mark"))},
	} {
		passes := func(f []byte) bool {
			t.Helper()
			_ = write(t, way.in, f) // the kernel takes no frame without a header
			if err := write(t, way.in, way.mark); err != nil {
				t.Fatal(err)
			}
			got := false
			for {
				switch next := frame(t, way.out); {
				case bytes.Equal(next, way.mark):
					return got
				case bytes.Equal(next, f):
					got = true
				default:
					t.Errorf("%s: there comes % x", way.name, next)
				}
			}
		}
		for name, f := range way.good {
			if !passes(f) {
				t.Errorf("%s: %s does not pass", way.name, name)
			}
		}
		for name, f := range way.bad {
			if passes(f) {
				t.Errorf("%s: %s passes", way.name, name)
			}
		}
	}
	inside(t, l.Wire, func() error {
		links, err := net.Interfaces()
		for _, i := range links {
			if all, _ := i.Addrs(); i.Name != "lo" && len(all) > 0 {
				t.Errorf("%s has the addresses %v", i.Name, all)
			}
		}
		return err
	})
}

// TestPluggedSegments: what is left to the other side, checksums and segments, is
// left to it, whole, in both directions.
func TestPluggedSegments(t *testing.T) {
	l, machine := plugged(t)
	body := append(tcp(1000, 443), bytes.Repeat([]byte("segment "), 5000)...)
	for name, way := range map[string]struct {
		in, out *os.File
		frame   []byte
	}{
		"from": {machine, l.Tap, ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, guest, world, body))},
		"to":   {l.Tap, machine, ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, world, guest, body))},
	} {
		header := []byte{1, 1, 54, 0, 1460 & 255, 1460 >> 8, 34, 0, 16, 0} // a partial checksum; TCP over IPv4 in 1460s
		if _, err := way.in.Write(slices.Concat(header, way.frame)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1<<17)
		n := 0
		eventually(t, "the segment", func() bool { var err error; n, err = way.out.Read(got); return err == nil })
		if !bytes.Equal(got[headerSize:n], way.frame) || !bytes.Equal(got[:headerSize], header) {
			t.Errorf("%s: %d bytes of %d, header % x", name, n-headerSize, len(way.frame), got[:headerSize])
		}
	}
}

// TestProbeMachines: it works here, and leaves nothing.
func TestProbeMachines(t *testing.T) {
	needWires(t)
	if err := (Machines{}).Probe(); err != nil {
		t.Error(err)
	}
}

// TestPlugRefused: one machine is on a wire at a time, and what is no wire is none;
// what was plugged in comes out, also twice.
func TestPlugRefused(t *testing.T) {
	l, _ := plugged(t)
	if _, err := (Machines{}).Plug(l.Wire, "another", 0); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("another machine: %v", err)
	}
	if _, err := (Machines{}).Plug(l.Wire, "another", 70000); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("another machine, by name: %v", err)
	}
	unplugged(t, l.Wire)
	unplugged(t, l.Wire)
	if err := (Machines{}).Connect(l.Wire); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("what was unplugged is connected: %v", err)
	}
	tap, err := Machines{}.Plug(l.Wire, "the next", 0)
	if err != nil {
		t.Fatal(err)
	}
	tap.Close() // as the end of its process does: what joins it is still there
	if tap, err = (Machines{}).Plug(l.Wire, "another", 0); err != nil {
		t.Fatal(err)
	}
	tap.Close()
	gone := sandbox.Wire{NetNS: "/nonexistent"}
	if _, err := (Machines{}).Plug(gone, "x", 0); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("no wire: %v", err)
	}
	if objects, err := (Machines{}).Unplug(gone.NetNS); err != nil || len(objects) != 0 {
		t.Errorf("no wire: %+v, %v", objects, err)
	}
}

// TestNotConnected: nothing passes in either direction before somebody says so.
func TestNotConnected(t *testing.T) {
	l := open(t, wiresIn(t), newID())
	machine, err := Machines{}.Plug(l.Wire, "machine", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unplugged(t, l.Wire)
	defer machine.Close()
	good, _ := fromGuest()
	answer := ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, world, guest, udp(DNSPort, 1000, "early")))
	if err := write(t, machine, good["syn"]); err == nil {
		t.Error("a link that is down takes frames")
	}
	if err := write(t, l.Tap, answer); err != nil {
		t.Fatal(err)
	}
	if err := (Machines{}).Connect(l.Wire); err != nil {
		t.Fatal(err)
	}
	late := changed(answer, atFromPort+8, []byte("later")...)
	if err := errors.Join(write(t, machine, good["query"]), write(t, l.Tap, late)); err != nil {
		t.Fatal(err)
	}
	if f := frame(t, l.Tap); !bytes.Equal(f, good["query"]) {
		t.Errorf("from the machine comes % x", f)
	}
	if f := frame(t, machine); !bytes.Equal(f, late) {
		t.Errorf("to the machine comes % x", f)
	}
}

// TestPlugQueue: what waits for a machine that does not read is bounded.
func TestPlugQueue(t *testing.T) {
	l, machine := plugged(t)
	answer := ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, world, guest, udp(DNSPort, 1000, "x")))
	for range 20 * queue {
		if err := write(t, l.Tap, answer); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	rc, err := machine.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	if err := rc.Control(func(fd uintptr) {
		for {
			if _, err := unix.Read(int(fd), buf); err != nil {
				return
			}
			n++
		}
	}); err != nil || n < queue || n > 8*queue {
		t.Errorf("%d frames waited, %v", n, err)
	}
}

// BenchmarkPlug is what a machine's link costs, made and removed.
func BenchmarkPlug(b *testing.B) {
	needWires(b)
	dir, id := filepath.Join(b.TempDir(), "wires"), newID()
	l, err := Open(dir, id)
	if err != nil {
		b.Fatal(err)
	}
	var plug, unplug []time.Duration
	for b.Loop() {
		began := time.Now()
		tap, err := Machines{}.Plug(l.Wire, id, 0)
		if err == nil {
			err = Machines{}.Connect(l.Wire)
		}
		plug = append(plug, time.Since(began))
		if err != nil {
			b.Fatal(err)
		}
		tap.Close()
		began = time.Now()
		if _, err = (Machines{}).Unplug(l.Wire.NetNS); err != nil {
			b.Fatal(err)
		}
		unplug = append(unplug, time.Since(began))
	}
	for what, took := range map[string][]time.Duration{"µs/plug": plug, "µs/unplug": unplug} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), what)
	}
	l.Tap.Close()
	if _, err := Remove(dir, id); err != nil {
		b.Error(err)
	}
}

// TestPlugNoise: whatever a machine puts into its frames and their virtio-net headers,
// what comes out is between the two ends, and what is right still passes.
func TestPlugNoise(t *testing.T) {
	l, machine := plugged(t)
	random := rand.New(rand.NewPCG(1, 2))
	good, bad := fromGuest()
	var seeds [][]byte
	for _, all := range []map[string][]byte{good, bad} {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			seeds = append(seeds, all[name])
		}
	}
	seeds = append(seeds, ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, guest, world, append(tcp(1, 443), make([]byte, 20000)...))),
		ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, guest, world, udp(1, DNSPort, strings.Repeat("x", 20000)))))
	rc, err := l.Tap.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	buf, out, taken := make([]byte, 1<<17), 0, 0
	look := func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if err != nil {
				return
			}
			f := buf[headerSize:n]
			out++
			arp := len(f) >= 42 && binary.BigEndian.Uint16(f[atEtherType:]) == unix.ETH_P_ARP
			if ip := len(f) >= 34 && bytes.Equal(f[:14], good["syn"][:14]) && bytes.Equal(f[atIPSource:atIPTarget], guest[:]); !ip && !(arp && bytes.Equal(f[atSource:atEtherType], GuestMAC)) {
				t.Errorf("there comes % x", f[:min(len(f), 64)])
			}
		}
	}
	for range 20000 {
		f := slices.Concat(make([]byte, headerSize), seeds[random.IntN(len(seeds))])
		for range random.IntN(4) {
			f[random.IntN(min(len(f), 80))] = byte(random.Uint32())
		}
		if random.IntN(2) == 0 { // one that is nearly right
			f[0], f[1] = byte(random.IntN(2)), []byte{0, 1, 3, 4, 5, 0x81}[random.IntN(6)]
			binary.NativeEndian.PutUint16(f[2:], uint16(34+random.IntN(40)))
			binary.NativeEndian.PutUint16(f[4:], uint16(random.IntN(1500)))
			binary.NativeEndian.PutUint16(f[6:], uint16(random.IntN(60)))
			binary.NativeEndian.PutUint16(f[8:], uint16(random.IntN(20)))
		}
		if _, err := machine.Write(f); err == nil {
			taken++
		}
		if err := rc.Control(look); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the kernel took %d of 20000 frames, %d came out", taken, out)
	if taken < 1000 || out < 100 {
		t.Error("too few to show anything")
	}
	if err := write(t, machine, good["query"]); err != nil {
		t.Fatal(err)
	}
	if f := frame(t, l.Tap); !bytes.Equal(f, good["query"]) {
		t.Errorf("afterwards there comes % x", f)
	}
}

// TestRate: what a machine sends, and what is sent to it, is no more than its rate and
// what may pass at once, whatever is written; and it is nearly that much.
func TestRate(t *testing.T) {
	const rate = 1 << 20
	l := open(t, wiresIn(t), newID())
	m := Machines{Rate: rate}
	if err := m.Probe(); err != nil {
		t.Fatal(err)
	}
	machine, err := m.Plug(l.Wire, "machine", 0)
	if err == nil {
		err = m.Connect(l.Wire)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unplugged(t, l.Wire)
	defer machine.Close()
	body := make([]byte, 1400)
	for _, way := range []struct {
		name    string
		in, out *os.File
		frame   []byte
	}{
		{"from the machine", machine, l.Tap, ether(GatewayMAC, GuestMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, guest, gateway, udp(1, DNSPort, string(body))))},
		{"to the machine", l.Tap, machine, ether(GuestMAC, GatewayMAC, unix.ETH_P_IP, ip4(unix.IPPROTO_UDP, world, guest, udp(DNSPort, 1, string(body))))},
	} {
		rc, err := way.out.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		passed, buf, began := 0, make([]byte, headerSize+MTU+14), time.Now()
		for time.Since(began) < 500*time.Millisecond {
			for range 20 {
				_ = write(t, way.in, way.frame) // the kernel drops what is too much
			}
			for {
				n := 0
				if err := rc.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) }); err != nil {
					t.Fatal(err)
				}
				if n <= headerSize {
					break
				}
				passed += n - headerSize
			}
		}
		most := burst + time.Since(began).Seconds()*rate
		if float64(passed) > 1.1*most || passed < rate/4 {
			t.Errorf("%s: %d bytes passed in %s, at most %.0f could", way.name, passed, time.Since(began), most)
		}
	}
}
