package broker

import (
	"bytes"
	"regexp"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// MaxSecret is how many bytes a secret may have.
const MaxSecret = 64 << 10

var reSecretName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// CheckSecretName refuses what cannot be the name of a secret. Errors: KindInvalid.
func CheckSecretName(name string) error {
	if reSecretName.MatchString(name) {
		return nil
	}
	return sandbox.Errorf("secret", sandbox.KindInvalid, "%.80q is no name of a secret", name).
		WithHint("1 to 64 letters, digits, hyphens and underscores, a letter or a digit first")
}

// CheckSecret refuses what cannot be put into a request, saying what is wrong and
// nothing of what is there: a secret has 1 byte to 64 KiB, no control character but
// the tab, and no space at its ends. Errors: KindInvalid, KindTooLarge.
func CheckSecret(b []byte) error {
	const op = "secret"
	switch {
	case len(b) == 0:
		return sandbox.Errorf(op, sandbox.KindInvalid, "the secret is empty").WithHint("give its value on standard input")
	case len(b) > MaxSecret:
		return sandbox.Errorf(op, sandbox.KindTooLarge, "the secret has more than %s", sandbox.FormatSize(MaxSecret)).
			WithHint("a secret is a token or a password, not a file")
	case bytes.ContainsAny(b, "\r\n"):
		return sandbox.Errorf(op, sandbox.KindInvalid, "the secret has more than one line").WithHint("what goes into a request is one line; the line's end is not part of it")
	case bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return sandbox.Errorf(op, sandbox.KindInvalid, "the secret has a control character").WithHint("encode it as whoever takes it says, for instance in base64")
	case len(bytes.Trim(b, " \t")) != len(b):
		return sandbox.Errorf(op, sandbox.KindInvalid, "the secret begins or ends with a space").WithHint("a field of a request cannot: was it copied with it?")
	}
	return nil
}

// trimLine takes off the end of the one line of a file.
func trimLine(b []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
}
