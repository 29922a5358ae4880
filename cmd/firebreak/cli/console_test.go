package cli

import (
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// What is typed reaches the program as it is, but for what is meant for us, however
// the keys come in pieces.
func TestKeyboard(t *testing.T) {
	for _, c := range []struct {
		escape byte
		typed  string
		want   string
		detach bool
	}{
		{'~', "ls ~.\r", "ls ~.\r", false},
		{'~', "~.", "", true},
		{'~', "ls\r~.", "ls\r", true},
		{'~', "ls\n~.more", "ls\n", true},
		{'~', "~~.", "~.", false},
		{'~', "~a~.", "~a~.", false},
		{'~', "~\r~.", "~\r", true},
		{'~', "\r~~~.\r~~\r~.", "\r~~.\r~\r", true},
		{'~', "\x03~.", "\x03~.", false},
		{'%', "~.\r%.", "~.\r", true},
		{0, "~.\r~.", "~.\r~.", false},
	} {
		for size := 1; size <= len(c.typed); size++ {
			k := &keyboard{escape: c.escape, begun: true}
			got, detach := "", false
			for at := 0; at < len(c.typed) && !detach; at += size {
				var pass []byte
				pass, detach = k.filter([]byte(c.typed[at:min(at+size, len(c.typed))]))
				got += string(pass)
			}
			if got != c.want || detach != c.detach {
				t.Errorf("%q by %d: %q %v, want %q %v", c.typed, size, got, detach, c.want, c.detach)
			}
		}
	}
}

func TestEscape(t *testing.T) {
	for s, want := range map[string]byte{"~": '~', "none": 0, "%": '%'} {
		if b, err := escapeOf(s); err != nil || b != want {
			t.Errorf("%q: %q %v", s, b, err)
		}
	}
	for _, s := range []string{"", ".", " ", "\x1b", "ab", "é"} {
		if _, err := escapeOf(s); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%q: %v", s, err)
		}
	}
}
