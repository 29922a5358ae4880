// Package roots makes root file systems for tests that boot machines: as small as
// will do, of what this machine has.
package roots

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// script copies Python, a shell and more programs, with the libraries of each.
const script = `
cd "$1"; shift; mkdir -p usr/bin usr/lib usr/lib64 etc; ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib64 lib64
name=$(basename "$1")
for p in "$@" /usr/lib/$name/lib-dynload/*.so; do ldd "$p" 2>/dev/null || true; done |
  sed -n 's/^.* => \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*\) .*/\1/p' | sort -u |
  while read -r l; do mkdir -p ".$(dirname "$l")"; cp -L "$l" ".$l"; done
cp "$1" usr/bin/; ln -s "$name" usr/bin/python3; cp "$2" usr/bin/sh; shift 2
for p in "$@"; do cp "$p" usr/bin/; done
mkdir -p usr/lib/$name; (cd /usr/lib/$name; tar c --exclude=test --exclude=__pycache__ --exclude=idlelib --exclude='config-*' .) | tar x -C usr/lib/$name
`

// Python returns a root file system with the machine's own Python and a shell,
// programs by their names, and little else.
func Python(t testing.TB, programs ...string) string {
	t.Helper()
	python, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		t.Skip("not run: there is no /usr/bin/python3")
	}
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	args := []string{"-ec", script, "sh", root, python, shell}
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Skipf("not run: there is no %s", p)
		}
		args = append(args, path)
	}
	if out, err := exec.Command("sh", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return root
}
