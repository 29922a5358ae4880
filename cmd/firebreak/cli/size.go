package cli

import (
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// sizeFlag is a pflag.Value for sizes. set tells a limit that was asked for
// from one left to the server.
type sizeFlag struct {
	bytes int64
	set   bool
}

// String implements pflag.Value.
func (f *sizeFlag) String() string {
	if !f.set {
		return ""
	}
	return strings.ReplaceAll(sandbox.FormatSize(f.bytes), " ", "")
}

// Set implements pflag.Value.
func (f *sizeFlag) Set(s string) error {
	n, err := sandbox.ParseSize(s)
	if err != nil {
		return err
	}
	f.bytes, f.set = n, true
	return nil
}

// Type implements pflag.Value.
func (f *sizeFlag) Type() string { return "size" }
