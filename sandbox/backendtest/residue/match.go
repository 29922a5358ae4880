package residue

import "strings"

// matcher finds mentions of ids and of paths under dirs.
type matcher struct {
	ids  []string
	dirs []string
}

// find returns the id or directory that s mentions, or "".
func (m matcher) find(s string) string {
	for _, id := range m.ids {
		if id != "" && strings.Contains(s, id) {
			return id
		}
	}
	for _, d := range m.dirs {
		if mentionsPath(s, d) {
			return d
		}
	}
	return ""
}

// why is find as a Finding's detail: where the mention is and what of.
func (m matcher) why(where, s string) string {
	if hit := m.find(s); hit != "" {
		return where + " mentions " + hit
	}
	return ""
}

// mentionsPath reports whether s contains dir as a whole path or as the parent
// of one: /data does not occur in /database.
func mentionsPath(s, dir string) bool {
	if dir == "" {
		return false
	}
	for {
		i := strings.Index(s, dir)
		if i < 0 {
			return false
		}
		s = s[i+len(dir):]
		if s == "" || !isNameByte(s[0]) {
			return true
		}
	}
}

func isNameByte(c byte) bool {
	return c == '_' || c == '-' || c == '.' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func hasAnyPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if p != "" && strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
