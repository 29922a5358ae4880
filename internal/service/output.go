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

// splitter turns a stream of bytes into messages that are text wherever the
// stream is valid UTF-8, although chunks end in the middle of characters: the
// beginning of one is held back until the rest has come.
type splitter struct {
	held []byte // at most utf8.UTFMax-1 bytes
}

// next returns the message for the next bytes of the stream; nil when they are
// all held back.
func (s *splitter) next(data []byte) *v1.Output {
	if len(s.held) > 0 {
		data = append(s.held, data...)
		s.held = nil
	}
	if tail := partial(data); tail > 0 {
		s.held = append([]byte(nil), data[len(data)-tail:]...)
		data = data[:len(data)-tail]
	}
	return toOutput(data)
}

// rest returns what was held back, at the end of the stream.
func (s *splitter) rest() *v1.Output {
	data := s.held
	s.held = nil
	return toOutput(data)
}

func toOutput(data []byte) *v1.Output {
	switch {
	case len(data) == 0:
		return nil
	case utf8.Valid(data):
		return &v1.Output{Text: string(data)}
	}
	return &v1.Output{Data: data}
}

// partial is the length of the unfinished character at the end of b, or 0.
func partial(b []byte) int {
	for i := 1; i <= min(utf8.UTFMax-1, len(b)); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}
