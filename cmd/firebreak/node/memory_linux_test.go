package node

import (
	"testing"
	"testing/fstest"
)

func TestMemoryLimit(t *testing.T) {
	const v1 = "30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
	const v2 = "30 24 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
	const part = "30 24 0:26 /pod /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
	for name, c := range map[string]struct {
		groups, mounts string
		files          map[string]string
		want           int64
	}{
		"none":         {"0::/\n", "", nil, 0},
		"v1":           {"4:memory:/a/b\n0::/\n", v1, map[string]string{"memory/a/b/memory.limit_in_bytes": "1000\n", "memory/memory.limit_in_bytes": "9223372036854771712"}, 1000},
		"v1 parent":    {"4:memory:/a/b\n", v1, map[string]string{"memory/a/b/memory.limit_in_bytes": "9223372036854771712\n", "memory/a/memory.limit_in_bytes": "500\n"}, 500},
		"v1 unlimited": {"4:memory:/\n", v1, map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"v2":           {"0::/x.service\n", v2, map[string]string{"x.service/memory.max": "77\n"}, 77},
		"v2 max":       {"0::/x.service\n", v2, map[string]string{"x.service/memory.max": "max\n"}, 0},
		"part":         {"0::/pod/c\n", part, map[string]string{"c/memory.max": "5\n", "memory.max": "7\n"}, 5},
	} {
		root := fstest.MapFS{"proc/self/cgroup": {Data: []byte(c.groups)}, "proc/self/mountinfo": {Data: []byte(c.mounts)}}
		for f, v := range c.files {
			root["sys/fs/cgroup/"+f] = &fstest.MapFile{Data: []byte(v)}
		}
		if got := memoryLimit(root); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
