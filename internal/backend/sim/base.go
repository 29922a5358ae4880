package sim

import (
	"io/fs"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// newFS returns the synthetic root with an empty writable layer of limit bytes
// over it.
func newFS(limit int64) *memFS {
	f := &memFS{}
	f.root = &node{mode: fs.ModeDir | 0o755, kids: map[string]*node{}, mtime: time.Now()}
	f.root.parent = f.root
	for _, d := range []string{"bin", "dev", "etc", "proc/sys/kernel", "run", "usr/bin", "usr/lib", "var/tmp", "root", "home"} {
		must(f.MkdirAll(rootCred, "/"+d, 0o755))
	}
	for _, d := range []string{"/tmp", "/home/user"} {
		must(f.MkdirAll(rootCred, d, 0o755))
	}
	f.node("/tmp").mode = fs.ModeDir | fs.ModeSticky | 0o777
	f.node("/var/tmp").mode = fs.ModeDir | fs.ModeSticky | 0o777
	f.node("/root").mode = fs.ModeDir | 0o700
	home := f.node("/home/user")
	home.uid, home.gid = 1000, 1000
	f.node("/tmp").scratch, home.scratch = true, true
	for name, text := range map[string]string{
		"/etc/passwd":   "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
		"/etc/group":    "root:x:0:\nuser:x:1000:\n",
		"/etc/hostname": "sandbox\n",

		"/proc/sys/kernel/hostname": "sandbox\n",
	} {
		must(f.WriteFile(rootCred, name, []byte(text), 0o644))
	}
	for _, name := range []string{"null", "zero"} {
		must(f.WriteFile(rootCred, "/dev/"+name, nil, 0o666))
		f.node("/dev/" + name).special = name
		f.node("/dev/" + name).mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	for _, name := range programNames() {
		must(f.WriteFile(rootCred, "/usr/bin/"+name, []byte("#!sim\n"), 0o755))
	}
	must(f.MkdirAll(rootCred, guest.RuntimeDir, 0o755))
	must(f.WriteFile(rootCred, guest.AgentPath, []byte("#!sim\n"), 0o555))
	f.root.markBase()
	f.used, f.limit = 0, limit
	return f
}

func (f *memFS) setHostname(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range []string{"/etc/hostname", "/proc/sys/kernel/hostname"} {
		f.node(file).data = []byte(name + "\n")
	}
}

func must(err error) {
	if err != nil {
		panic("sim: building the base file system: " + err.Error()) // constant input
	}
}
