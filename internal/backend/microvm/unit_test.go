//go:build linux

package microvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/snapimage"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestCommand: QEMU's arguments, whole.
func TestCommand(t *testing.T) {
	m := vm{id: "in1", dir: "/d/in1", cpus: 2, memory: 600 << 20, kernel: "/k", initial: "/i", root: "/c/root,1", runtime: "/c/runtime",
		disk: "/d/in1/disk", argument: "firebreak=x", uid: 7, accel: accelTCG}
	args := arguments(m, [2]int{7, 2})
	want := "-name in1 -nodefaults -no-user-config -display none -nic none " +
		"-machine pc,usb=off,vmport=off,dump-guest-core=off,mem-merge=off,memory-backend=ram -accel tcg,thread=multi,tb-size=64 -cpu max " +
		"-smp 2 -m 600M -object memory-backend-file,id=ram,share=on,mem-path=/proc/self/fd/3,size=629145600 -bios qboot.rom -kernel /k -initrd /i " +
		"-action reboot=shutdown,shutdown=pause,panic=pause,watchdog=pause " +
		"-append console=ttyS0 quiet panic=-1 reboot=k no_timer_check rdinit=/init firebreak=x " +
		"-chardev ringbuf,id=console,size=65536 -serial chardev:console -chardev pipe,id=agent,path=agent " +
		"-device virtio-serial-pci,max_ports=3 -device virtserialport,chardev=agent,nr=1,name=firebreak.agent " +
		"-chardev pipe,id=orders,path=orders -device virtserialport,chardev=orders,nr=2,name=firebreak.machine " +
		"-qmp unix:qmp,server=on,wait=off -qmp unix:control,server=on,wait=off -sandbox on,obsolete=deny,spawn=deny,resourcecontrol=deny " +
		"-drive if=none,format=raw,id=root,file=/c/root,,1,readonly=on,file.locking=off -device virtio-blk-pci,drive=root " +
		"-drive if=none,format=raw,id=runtime,file=/c/runtime,readonly=on,file.locking=off -device virtio-blk-pci,drive=runtime " +
		"-drive if=none,format=raw,id=disk,file=/d/in1/disk,cache=unsafe,discard=unmap,auto-read-only=off -device virtio-blk-pci,drive=disk,werror=report,rerror=report " +
		"-chroot empty -runas 7:7"
	if got := strings.Join(args, " "); got != want {
		t.Errorf("arguments\n%s\nwant\n%s", got, want)
	}
	if strings.Contains(want, "-netdev") || strings.Contains(want, "virtio-net") {
		t.Error("a network device that nobody asked for")
	}
	m.nic = &nic{mac: net.HardwareAddr{2, 0, 0, 0, 0, 2}, tap: os.Stdin, link: "vm0", netns: "/wires/in1"}
	device := " -netdev tap,id=wire,fd=4,vhost=off -device virtio-net-pci,netdev=wire,mac=02:00:00:00:00:02,romfile=,csum=on,guest_csum=on,host_tso4=on,guest_tso4=on," +
		"gso=off,host_tso6=off,guest_tso6=off,host_ecn=off,guest_ecn=off,host_ufo=off,guest_ufo=off,guest_announce=off,mq=off,ctrl_vq=off,ctrl_rx=off,ctrl_vlan=off," +
		"ctrl_rx_extra=off,ctrl_mac_addr=off,ctrl_guest_offloads=off"
	if got := strings.Join(arguments(m, [2]int{7, 2}), " "); got != strings.Replace(want, " -chroot ", device+" -chroot ", 1) {
		t.Errorf("arguments with a network\n%s", got)
	}
	if got := strings.Join(arguments(m, [2]int{10, 0}), " "); !strings.Contains(got, device+",host_uso=off,guest_uso4=off,guest_uso6=off -run-with ") {
		t.Errorf("arguments with a network\n%s", got)
	}
	m.nic = nil
	m.accel, m.probe = accelKVM, true
	args = arguments(m, [2]int{10, 0})
	got := strings.Join(args, " ")
	if !strings.HasSuffix(got, "-run-with chroot=empty,user=7:7") || !strings.Contains(got, "-accel kvm -cpu host") || strings.Contains(got, "-drive") {
		t.Errorf("arguments\n%s", got)
	}
	m.probe, m.rate = false, Rate{Bytes: 1 << 20, Ops: 500}
	if got := strings.Join(arguments(m, [2]int{10, 0}), " "); strings.Count(got, ",throttling.bps-total=1048576,throttling.iops-total=500,throttling.group=disks -device") != 3 {
		t.Errorf("arguments of one with a rate\n%s", got)
	}
	m.rate = Rate{}
	if got := strings.Join(arguments(m, [2]int{10, 0}), " "); strings.Contains(got, "throttling") {
		t.Errorf("arguments of one without a rate\n%s", got)
	}
	m.saved = &snapimage.Image{}
	if got := strings.Join(arguments(m, [2]int{10, 0}), " "); !strings.Contains(got, " -S -incoming defer ") {
		t.Errorf("arguments of one that was saved\n%s", got)
	}
	m.uid = 0
	if args = arguments(m, [2]int{10, 0}); !slices.ContainsFunc(args, func(a string) bool { return strings.HasSuffix(a, "elevateprivileges=deny") }) {
		t.Errorf("arguments\n%s", args)
	}
}

// talk plays QEMU's side of a conversation: lines beginning with > are expected,
// the others are sent.
func talk(t *testing.T, script string) (ending, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		in := bufio.NewScanner(theirs)
		for line := range strings.Lines(script) {
			if want, ok := strings.CutPrefix(line, ">"); ok {
				if !in.Scan() || !strings.Contains(in.Text(), strings.TrimSpace(want)) {
					t.Errorf("got %q, want %q", in.Text(), want)
					return
				}
				continue
			}
			if _, err := io.WriteString(theirs, line); err != nil {
				return
			}
		}
	}()
	e, err := follow(t.Context(), ours)
	<-done
	return e, err
}

func TestQMP(t *testing.T) {
	const begin = "{\"QMP\": {}}\n>qmp_capabilities\n{\"return\": {}}\n>query-status\n"
	const running = "{\"return\": {\"status\": \"running\"}}\n"
	for _, c := range []struct{ name, script, why, console string }{
		{"panic", begin + running + "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n" +
			">query-status\n{\"return\": {\"status\": \"shutdown\"}}\n>ringbuf-read\n{\"return\": \"Kernel panic - x\"}\n",
			"its processor was reset: a panic, or a triple fault", "Kernel panic - x"},
		{"off, and a paused machine on the way", begin + running + "{\"event\": \"STOP\"}\n>query-status\n{\"return\": {\"status\": \"paused\"}}\n" +
			"{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n>query-status\n{\"return\": {\"status\": \"shutdown\"}}\n>ringbuf-read\n{\"return\": \"\"}\n",
			"it switched itself off", ""},
		{"stopped before anybody came", begin + "{\"return\": {\"status\": \"internal-error\"}}\n>ringbuf-read\n{\"error\": {\"desc\": \"no\"}}\n",
			"the virtualization of this host cannot go on with it", ""},
		{"an event before an answer", begin + "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-shutdown\"}}\n{\"return\": {\"status\": \"shutdown\"}}\n>ringbuf-read\n{\"return\": \"x\"}\n",
			"it switched itself off", "x"},
	} {
		if e, err := talk(t, c.script); err != nil || e.why != c.why || e.console != c.console {
			t.Errorf("%s: %+v, %v", c.name, e, err)
		}
	}
	for name, script := range map[string]string{
		"no greeting": "{\"return\": {}}\n", "no JSON": "x\n", "hangs up": "", "endless": strings.Repeat("x", 2*maxMessage),
		"hangs up later": begin, "a refusal": "{\"QMP\": {}}\n>qmp_capabilities\n{\"error\": {\"desc\": \"no\"}}\n",
	} {
		if _, err := talk(t, script); err == nil {
			t.Errorf("%s: taken for an end", name)
		}
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := follow(ctx, ours); err == nil {
		t.Error("silence was taken for an end")
	}
}

func TestLastWords(t *testing.T) {
	for console, want := range map[string]string{
		"": "",
		"[    1.2] Kernel panic - not syncing: x\r\n[    1.3] Call Trace:\n": "Kernel panic - not syncing: x",
		"noise\nfirebreak: the agent has ended\n[ 3.1] reboot: Power down":   "the agent has ended",
		"firebreak: \x1b[2Jhi":                    "[2Jhi",
		"firebreak: " + strings.Repeat("x", 4000): strings.Repeat("x", 300) + "...",
	} {
		if got := lastWords(console); got != want {
			t.Errorf("%.60q: %q, want %q", console, got, want)
		}
	}
}

// TestImages: a file is made once, checked, and made again when it is not what it
// was; a cancelled one leaves nothing.
func TestImages(t *testing.T) {
	dir := t.TempDir()
	made := 0
	write := func(w io.Writer) error {
		made++
		_, err := io.WriteString(w, "content")
		return err
	}
	get := func(c *images) string {
		t.Helper()
		p, err := c.get(t.Context(), "x", write)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	c := newImages(dir)
	path := get(c)
	get(c)
	get(newImages(dir))
	if made != 1 {
		t.Errorf("made %d times", made)
	}
	for what, spoil := range map[string]func() error{
		"changed":   func() error { return errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, []byte("CONTENT"), 0o600)) },
		"cut":       func() error { return os.Truncate(path, 3) },
		"no digest": func() error { return os.Remove(path + ".sha256") },
		"gone":      func() error { return os.Remove(path) },
	} {
		before := made
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if what == "no digest" { // known to be right by who has checked it, by nobody else
			c = newImages(dir)
		}
		get(c)
		if b, err := os.ReadFile(path); err != nil || string(b) != "content" || made != before+1 {
			t.Errorf("%s: %q, %v, made %d times", what, b, err, made-before)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.get(ctx, "y", func(w io.Writer) error {
		cancel()
		_, err := w.Write([]byte("half"))
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled one: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestImagesAreMadeOn: who cannot wait does not undo what others will need; the
// Backend's end does.
func TestImagesAreMadeOn(t *testing.T) {
	c := newImages(t.TempDir())
	defer c.close()
	begun, resume := make(chan struct{}, 1), make(chan struct{})
	write := func(w io.Writer) error {
		begun <- struct{}{}
		<-resume
		_, err := io.WriteString(w, "content")
		return err
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := c.need(ctx, "x", write)
		first <- err
	}()
	<-begun
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	second := make(chan error, 1)
	go func() {
		path, err := c.need(t.Context(), "x", func(io.Writer) error { return errors.New("made twice") })
		if b, e := os.ReadFile(path); e != nil || string(b) != "content" {
			err = errors.Join(err, e)
		}
		second <- err
	}()
	close(resume)
	if err := <-second; err != nil {
		t.Errorf("the second: %v", err)
	}
	// The end of the Backend is the end of it.
	d := newImages(t.TempDir())
	third := make(chan error, 1)
	go func() {
		_, err := d.need(t.Context(), "y", func(w io.Writer) error {
			begun <- struct{}{}
			for {
				if _, err := w.Write([]byte("more")); err != nil {
					return err
				}
			}
		})
		third <- err
	}()
	<-begun
	d.close()
	if err := <-third; !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

func TestFindKernel(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{"boot/vmlinuz-6.1.0-9-cloud-amd64", "boot/vmlinuz-6.1.0-57-cloud-amd64", "boot/vmlinuz-6.1.0-99-amd64", "lib/modules/6.1.0-57-cloud-amd64/modules.dep"} {
		p = filepath.Join(root, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	k, m, err := findKernel(root, "", "")
	if err != nil || k != filepath.Join(root, "boot/vmlinuz-6.1.0-57-cloud-amd64") || m != filepath.Join(root, "lib/modules/6.1.0-57-cloud-amd64") {
		t.Errorf("%s, %s, %v", k, m, err)
	}
	if _, m, err = findKernel(root, filepath.Join(root, "boot/vmlinuz-6.1.0-99-amd64"), ""); err != nil || m != "" {
		t.Errorf("one without modules: %q, %v", m, err)
	}
	if _, _, err := findKernel(t.TempDir(), "", ""); err == nil {
		t.Error("found where there is none")
	}
}

func TestKVMMissing(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	dev := write("kvm", "")
	if err := kvmMissing(dev, write("intel", "flags : fpu vmx smx\n")); err != nil {
		t.Error(err)
	}
	if err := kvmMissing(dev, write("none", "flags : fpu vmxnet\n")); err == nil {
		t.Error("a device alone is no virtualization")
	}
	if err := kvmMissing(filepath.Join(dir, "no"), filepath.Join(dir, "intel")); err == nil {
		t.Error("without the device")
	}
}

// TestCgroups: the hierarchies of both versions.
func TestCgroups(t *testing.T) {
	const v1 = "30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	h, err := findCgroups(strings.NewReader(v1), "fb")
	if err != nil || h.v2 || len(h.parent) != 3 {
		t.Fatalf("%+v, %v", h, err)
	}
	if d := h.dirs("in1"); !slices.Equal(d, []string{"/sys/fs/cgroup/cpu,cpuacct/fb/in1", "/sys/fs/cgroup/memory/fb/in1"}) {
		t.Errorf("dirs %q", d)
	}
	if got := hierarchyOf("/sys/fs/cgroup/cpu,cpuacct/fb/in1", "4:memory:/a\n3:cpu,cpuacct:/b/c\n0::/d\n"); got != "/sys/fs/cgroup/cpu,cpuacct/b/c" {
		t.Errorf("hierarchy %s", got)
	}
	top := t.TempDir()
	for name, text := range map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.subtree_control": ""} {
		if err := os.WriteFile(filepath.Join(top, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h, err = findCgroups(strings.NewReader(fmt.Sprintf("30 24 0:26 / %s rw - cgroup2 cgroup2 rw\n", top)), "fb")
	if err != nil || !h.v2 || len(h.dirs("in1")) != 1 || h.parent["pids"] == "" {
		t.Errorf("%+v, %v", h, err)
	}
}

// TestRefusedSpecs: what no machine could be made for is refused before anything
// is.
func TestRefusedSpecs(t *testing.T) {
	p := probed{info: sandbox.Info{Name: "microvm", Isolation: sandbox.IsolationHypervisor, Available: true}}
	good := sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)}
	if s, err := admit(good, p); err != nil || s.Hostname != string(good.Instance) || s.Limits.Memory != DefaultMemory {
		t.Errorf("%+v, %v", s, err)
	}
	for what, change := range map[string]func(*sandbox.Spec){
		"a wire":          func(s *sandbox.Spec) { s.Wire = &sandbox.Wire{} },
		"a long hostname": func(s *sandbox.Spec) { s.Hostname = strings.Repeat("x", 65) },
		"no root":         func(s *sandbox.Spec) { s.Root.Dir = "/nonexistent" },
		"a bare root":     func(s *sandbox.Spec) { s.Root.Dir = t.TempDir() },
		"a mount on /":    func(s *sandbox.Spec) { s.Root.Mounts = []sandbox.Mount{{Source: "/usr", Target: "/"}} },
		"a missing mount": func(s *sandbox.Spec) { s.Root.Mounts = []sandbox.Mount{{Source: "/nonexistent", Target: "/usr"}} },
		"confidentiality": func(s *sandbox.Spec) { s.MinIsolation = sandbox.IsolationConfidential },
	} {
		bad := good
		change(&bad)
		if _, err := admit(bad, p); err == nil {
			t.Errorf("%s was admitted", what)
		}
	}
}
