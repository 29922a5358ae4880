package inspect

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// splitTarget takes a request's target apart, "/PATH?QUERY", or says why it means
// nothing, or two things. The path is as it was written.
func splitTarget(target string) (path, query, why string) {
	if target == "" || target[0] != '/' {
		return "", "", "the target is not a path"
	}
	path, query, _ = strings.Cut(target, "?")
	if why = oddPath(path); why != "" {
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

// pathChars are those that stand for themselves in a path. A semicolon is none:
// some servers cut a segment there.
const pathChars = "-._~!$&'()*+,=:@"

// oddPath says why two servers may read a path differently: escapes of what has a
// meaning, empty segments, dots.
func oddPath(path string) string {
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '/', strings.IndexByte(pathChars, c) >= 0:
		case c != '%':
			return "the path has a character that is to be escaped"
		case i+2 >= len(path) || unhex(path[i+1]) < 0 || unhex(path[i+2]) < 0:
			return "the path has an escape that is none"
		default:
			switch v := byte(unhex(path[i+1])<<4 | unhex(path[i+2])); {
			case v == '.', v == '/', v == '\\', v == ';', v == '%', v == '?', v == '#', v < ' ', v == 0x7f:
				return "the path has an escape of a character that has a meaning"
			}
			i += 2
		}
	}
	plain, err := url.PathUnescape(path)
	if err != nil || !utf8.ValidString(plain) {
		return "the path is not UTF-8"
	}
	segments := strings.Split(plain, "/")[1:]
	for i, s := range segments {
		switch {
		case s == "" && i < len(segments)-1:
			return "the path has an empty segment"
		case s != "" && strings.Trim(s, ". ") == "":
			return "the path has a segment of dots"
		}
	}
	return ""
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
