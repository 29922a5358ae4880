package config

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
)

// machineKeys are the keys of what machines may do to the host's disks and network, and of what
// they may be brought.
func machineKeys() []Key {
	return []Key{{
		Name: "machine_disk_rate", Env: "FIREBREAK_MACHINE_DISK_RATE", Kind: "size",
		Doc:     "how much each of microvm's guests may read from and write to its disks per second, 1MiB at least; 0: no bound",
		Default: func(Source) string { return "256MiB" },
		set: func(c *Config, v string) (err error) {
			c.Machine.DiskRate, err = parseAmount(orchestrator.Bytes, v)
			if err == nil && c.Machine.DiskRate > 0 && c.Machine.DiskRate < 1<<20 {
				err = fmt.Errorf("%q is too little to start a machine with", v)
			}
			c.Machine.DiskRate = max(c.Machine.DiskRate, 0)
			return err
		},
		get: func(c *Config) string {
			if c.Machine.DiskRate == 0 {
				return none
			}
			return formatAmount(orchestrator.Bytes, c.Machine.DiskRate)
		},
	}, {
		Name: "machine_disk_ops", Env: "FIREBREAK_MACHINE_DISK_OPS", Kind: "int",
		Doc:     "in how many requests per second, 100 at least; 0: no bound",
		Default: func(Source) string { return "20000" },
		set: func(c *Config, v string) error {
			n, err := strconv.ParseInt(v, 10, 31)
			if err != nil || n < 0 || n > 0 && n < 100 {
				return fmt.Errorf("%q is not a number of requests, from 100 on, or 0", v)
			}
			c.Machine.DiskOps = n
			return nil
		},
		get: func(c *Config) string { return strconv.FormatInt(c.Machine.DiskOps, 10) },
	}, {
		Name: "machine_network_rate", Env: "FIREBREAK_MACHINE_NETWORK_RATE", Kind: "size",
		Doc:     "how much may go to and how much from each of microvm's guests over its network per second, 64KiB at least; 0: no bound",
		Default: func(Source) string { return "0" },
		set: func(c *Config, v string) (err error) {
			c.Machine.NetworkRate, err = parseAmount(orchestrator.Bytes, v)
			if err == nil && c.Machine.NetworkRate > 0 && c.Machine.NetworkRate < 64<<10 {
				err = fmt.Errorf("%q is less than a frame's worth of a network", v)
			}
			c.Machine.NetworkRate = max(c.Machine.NetworkRate, 0)
			return err
		},
		get: func(c *Config) string {
			if c.Machine.NetworkRate == 0 {
				return none
			}
			return formatAmount(orchestrator.Bytes, c.Machine.NetworkRate)
		},
	}, {
		Name: "image_dirs", Env: "FIREBREAK_IMAGE_DIRS",
		Doc: "directories, with commas between, below which the server may read kernels and root file systems for templates of microvm, named by path; empty: none",
		set: setImageDirs,
		get: func(c *Config) string { return strings.Join(c.ImageDirs, ",") },
	}}
}

// setImageDirs reads absolute paths. The root would be all there is.
func setImageDirs(c *Config, v string) error {
	c.ImageDirs = nil
	for d := range strings.SplitSeq(v, ",") {
		if d = strings.TrimSpace(d); d == "" {
			continue
		}
		if d = filepath.Clean(d); !filepath.IsAbs(d) || d == "/" {
			return fmt.Errorf("%q is not an absolute path of a directory of images", d)
		}
		c.ImageDirs = append(c.ImageDirs, d)
	}
	return nil
}
