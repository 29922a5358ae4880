package archive

import (
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// Bounds of one archive.
const (
	MaxEntries = 100_000
	MaxDepth   = 64 // directories below each other
	MaxLinks   = 10_000
	maxPath    = 4095
	maxName    = 255
)

// Refused says why a path cannot be one of an archive, or "". Only the structure
// counts, and that it is UTF-8: names travel as text.
func Refused(name string) string {
	switch {
	case !utf8.ValidString(name):
		return "its name is not UTF-8"
	case !fs.ValidPath(name) || name == "." || strings.ContainsRune(name, 0) || !filepath.IsLocal(filepath.FromSlash(name)):
		return "its name is no clean path below the directory"
	case len(name) > maxPath:
		return fmt.Sprintf("its path has more than %d bytes", maxPath)
	case strings.Count(name, "/") >= MaxDepth:
		return fmt.Sprintf("it lies more than %d directories deep", MaxDepth)
	}
	for e := range strings.SplitSeq(name, "/") {
		if len(e) > maxName {
			return fmt.Sprintf("a name in its path has more than %d bytes", maxName)
		}
	}
	return ""
}

// Obeyed says why a path, which somebody in a sandbox made up, must not be one of
// people who list it, or "".
func Obeyed(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return guest.Obeyed(r) || r == '\\' || r == utf8.RuneError }) {
		return "whoever lists it would obey its name"
	}
	return ""
}

// RefusedLink says why a symbolic link at name, which is not refused itself, cannot
// be one of an archive, or "". Its target climbs first, from the directory it is
// in, which is no link, and then only descends: so no other link can turn it away.
func RefusedLink(name, target string) string {
	switch {
	case target == "" || len(target) > maxPath || strings.ContainsRune(target, 0) || !utf8.ValidString(target):
		return "it is a link to no path"
	case path.IsAbs(target) || filepath.IsAbs(target):
		return "it is a link to an absolute path"
	}
	up, descending := 0, false
	for e := range strings.SplitSeq(target, "/") {
		switch {
		case e == "..":
			if up++; descending || up > strings.Count(name, "/") {
				return "it is a link that leads out of the directory, or might"
			}
		case e != "" && e != ".":
			descending = true
		}
	}
	return ""
}
