package gvisor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// FuzzJournal: whatever a crash left of an instance's files, its directory's
// name is what the instance is called, and what is believed reads back the same.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"instance":"inaaaaaaaaaaaaaaaaaa","cgroups":["/sys/fs/cgroup/x"],"limits":{"memory":1}}`), []byte(`{"sentry":{"pid":1,"start":2},"processes":[{"pid":3,"start":4,"role":"gofer"}]}`))
	f.Add([]byte(`{"instance":"another"}`), []byte(`{"sentry":`))
	f.Add([]byte(``), []byte(`null`))
	dir := filepath.Join(f.TempDir(), "inaaaaaaaaaaaaaaaaaa")
	if err := os.Mkdir(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, made, alive []byte) {
		for name, b := range map[string][]byte{fileIntent: made, fileProcesses: alive, fileRunscLog: alive, filePanicLog: made} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		in, err := readIntent(dir)
		if err != nil || in.Instance != sandbox.InstanceID(filepath.Base(dir)) {
			t.Fatalf("%+v, %v", in, err)
		}
		if r, err := readRunning(dir); err == nil {
			if err := writeRunning(dir, r); err != nil {
				t.Fatal(err)
			}
			again, err := readRunning(dir)
			a, _ := json.Marshal(r)
			b, _ := json.Marshal(again)
			if err != nil || string(a) != string(b) {
				t.Fatalf("%s, then %s, %v", a, b, err)
			}
		}
		if s := lastWords(dir); !utf8.ValidString(s) || len(s) > 1000 {
			t.Fatalf("%q", s)
		}
	})
}

// FuzzKernelTables reads mountinfo and /proc/*/cgroup as the kernel might write
// them for the strangest names: a mount point is read as it is, and each
// controller is found in one hierarchy.
func FuzzKernelTables(f *testing.F) {
	f.Add("31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "4:memory:/a\n0::/b\n", "/a b\tc\\d\n")
	f.Add("30 23 0:26 / /nowhere rw - cgroup2 cgroup2 rw\n", "", "")
	f.Add(" - - \n", ":::\n", `\040`)
	f.Fuzz(func(t *testing.T, mountinfo, procs, name string) {
		escaped := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(name)
		if got := unescapeMount(escaped); got != name {
			t.Fatalf("%q was written %q and read %q", name, escaped, got)
		}
		host, err := findCgroups(strings.NewReader(mountinfo), procs, "p", len(name)%2 == 0)
		if err == nil {
			var all [][]string
			for _, h := range host.trees {
				if len(h.controllers) == 0 || slices.ContainsFunc(all, func(o []string) bool { return reflect.DeepEqual(o, h.controllers) }) {
					t.Fatalf("%+v", host)
				}
				all = append(all, h.controllers)
			}
		}
		if p := cgroupOf(procs, "memory"); !strings.Contains(procs, p) && p != "/" {
			t.Fatalf("%q", p)
		}
	})
}
