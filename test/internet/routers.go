//go:build linux

package internet

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Routers are the processes that a server has for the connections of its
// sandboxes.
func Routers(server int) (pids []int) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", server))
	for _, f := range threads {
		text, _ := os.ReadFile(f)
		for _, word := range strings.Fields(string(text)) {
			line, _ := os.ReadFile("/proc/" + word + "/cmdline")
			if pid, err := strconv.Atoi(word); err == nil && bytes.Contains(line, []byte("\x00router")) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
