package inspect

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/policy"
)

// splitTarget takes a request's target apart, "/PATH?QUERY", or says why it means
// nothing, or two things. The path is as it was written.
func splitTarget(target string) (path, query, why string) {
	if target == "" || target[0] != '/' {
		return "", "", "the target is not a path"
	}
	path, query, _ = strings.Cut(target, "?")
	if why = policy.OddPath(path); why != "" {
		return "", "", why
	}
	for i := range len(query) {
		if c := query[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '\\' {
			return "", "", "the query has a character that is to be escaped"
		}
	}
	if _, err := url.QueryUnescape(query); err != nil {
		return "", "", "the query has an escape that is none"
	}
	return path, query, ""
}

// splitAny is splitTarget for a host that no secret is sent to: a path may be one
// that servers read differently, which is then for the policy to know. Escapes of
// what may be looked for have to be ones.
func splitAny(target string) (path, query, why string) {
	if target == "" || target[0] != '/' {
		return "", "", "the target is not a path"
	}
	path, query, _ = strings.Cut(target, "?")
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return "", "", "the target has a character that is to be escaped"
		}
	}
	if _, err := url.QueryUnescape(query); err != nil {
		return "", "", "the query has an escape that is none"
	}
	return escapeOdd(path), query, ""
}

// escapeOdd escapes what net/http would: it undid all other escapes, too.
func escapeOdd(path string) string {
	const odd = "\"<>\\^`{|}"
	if !strings.ContainsAny(path, odd) {
		return path
	}
	var b strings.Builder
	for _, c := range []byte(path) {
		if strings.IndexByte(odd, c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
