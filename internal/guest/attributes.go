package guest

import (
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// CapabilityAttributes is of an agent that keeps attributes of files.
const CapabilityAttributes = "attributes"

// AttributePrefix is what the names of attributes begin with as the guest's file
// system has them: extended attributes, under the name that E2B's agent gives them,
// so that programs in the sandbox find them where they expect them.
const AttributePrefix = "user.e2b."

// Bounds of the attributes of a file: those of a file system's names, and of what
// one keeps beside a file.
const (
	maxAttributeName  = 255 - len(AttributePrefix)
	maxAttributeBytes = 4096 // names with their prefix, and values
)

// CheckAttributes refuses what cannot be kept: names that are empty or long, names
// and values with other characters than printable ASCII, and too much together.
// Errors: KindInvalid.
func CheckAttributes(a map[string]string) error {
	total := 0
	for name, value := range a {
		switch {
		case name == "" || len(name) > maxAttributeName:
			return sandbox.Errorf("write", sandbox.KindInvalid, "the name of metadata has %d bytes", len(name)).WithHint("it has 1 to %d", maxAttributeName)
		case !printable(name) || !printable(value):
			return sandbox.Errorf("write", sandbox.KindInvalid, "the metadata %.40q has other characters than printable ASCII", name)
		}
		total += len(AttributePrefix) + len(name) + len(value)
	}
	if total > maxAttributeBytes {
		return sandbox.Errorf("write", sandbox.KindInvalid, "the metadata has %d bytes", total).
			WithHint("names and values, and %d bytes for each, are at most %d together", len(AttributePrefix), maxAttributeBytes)
	}
	return nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// cleanAttributes is what of a guest's attributes follows the rules.
func cleanAttributes(a map[string]string) map[string]string {
	if CheckAttributes(a) == nil {
		return a
	}
	out, left := map[string]string{}, maxAttributeBytes
	for name, value := range a {
		one := map[string]string{name: value}
		if size := len(AttributePrefix) + len(name) + len(value); CheckAttributes(one) == nil && size <= left {
			out[name] = value
			left -= size
		}
	}
	return out
}
