package gvisor

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// identityFile is a file by which programs know the machine they are on. It is in the
// instance's directory and bound over what the sentry or the template has, which would
// be the same in whatever is made of one image. All that there can be have one length:
// the sentry of a restored instance goes on believing the one that was saved.
type identityFile struct {
	name, target string
	content      func(sum [sha256.Size]byte) string
}

var identity = []identityFile{
	{"machine-id", "/etc/machine-id", func(sum [sha256.Size]byte) string { return hex.EncodeToString(sum[:16]) + "\n" }},
	{"boot-id", "/proc/sys/kernel/random/boot_id", func(sum [sha256.Size]byte) string {
		sum[6], sum[8] = sum[6]&0x0f|0x40, sum[8]&0x3f|0x80 // a random UUID's
		return fmt.Sprintf("%x-%x-%x-%x-%x\n", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
	}},
}

// identityFiles are those that the root has a place for: an old template may not.
func identityFiles(s sandbox.Spec) []identityFile {
	return slices.DeleteFunc(slices.Clone(identity), func(f identityFile) bool {
		base, rest := carrier(s.Root, f.target)
		root, err := os.OpenRoot(base)
		if err != nil {
			return true
		}
		defer root.Close()
		fi, err := root.Lstat(rest)
		return err != nil || !fi.Mode().IsRegular()
	})
}

// writeIdentity writes them. They are the sandbox's, not the instance's: a sandbox that
// was paused has not been started again, and is on no other machine.
func writeIdentity(dir string, s sandbox.Spec) error {
	for _, f := range identityFiles(s) {
		sum := sha256.Sum256([]byte("firebreak " + f.name + " " + cmp.Or(string(s.Sandbox), string(s.Instance))))
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, []byte(f.content(sum)), 0o444); err != nil {
			return err
		}
		if err := os.Chmod(path, 0o444); err != nil { // whatever the umask: the guest's user reads it
			return err
		}
	}
	return nil
}
