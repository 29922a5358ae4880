package template

import (
	"bufio"
	"bytes"
	"crypto/md5" // what the database of packages has
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

const dpkgStatus = "var/lib/dpkg/status"

// packagedConfig begins the names of the files in /etc without which a program below
// /usr does not start: Debian's Java has its configuration there, behind links.
const packagedConfig = "etc/java-"

// layConfig copies configuration that is as its package brought it, by the sums that
// the package database has. What somebody has changed is the machine's own and stays
// out; the program goes without.
func (v hostView) layConfig(rootfs string) error {
	status, err := os.ReadFile(v.path(dpkgStatus))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	for name, sum := range conffiles(status) {
		real, err := filepath.EvalSymlinks(v.path(name))
		if err != nil || real != v.path(name) { // gone, or it leads elsewhere
			continue
		}
		b, err := readRegular(real)
		if err != nil {
			return err
		}
		if have := md5.Sum(b); b == nil || hex.EncodeToString(have[:]) != sum {
			continue
		}
		if err := replaceFile(filepath.Join(rootfs, name), b); err != nil {
			return err
		}
	}
	return nil
}

// conffiles are the names and sums of packagedConfig in dpkg's status: continuation
// lines of a name and its MD5, of which obsolete ones and those to be removed say so
// in a third field (deb-conffiles(5), dpkg-query(1)).
func conffiles(status []byte) map[string]string {
	found := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(status))
	lines.Buffer(nil, len(status)+1)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 2 || lines.Text()[0] != ' ' || len(f[1]) != 2*md5.Size {
			continue
		}
		if name := strings.TrimPrefix(f[0], "/"); strings.HasPrefix(name, packagedConfig) && path.Clean(name) == name {
			found[name] = f[1]
		}
	}
	return found
}
