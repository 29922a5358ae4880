package service

import (
	"io/fs"
	"strings"
	"unicode/utf8"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// text makes a string fit for a proto string field. Names of files may hold any
// bytes; what is not UTF-8 cannot be named over the wire anyway.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// permissions are the permission bits as chmod(1) writes them.
func permissions(f guest.FileInfo) uint32 {
	p := uint32(f.Mode.Perm())
	for bit, v := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if f.Mode&bit != 0 {
			p |= v
		}
	}
	return p
}

// toOutput makes a message of a piece of output; nil of none.
func toOutput(data []byte) *v1.Output {
	switch {
	case len(data) == 0:
		return nil
	case utf8.Valid(data):
		return &v1.Output{Text: string(data)}
	}
	return &v1.Output{Data: data}
}
