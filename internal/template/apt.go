package template

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// aptSource is one suite of a Debian archive.
type aptSource struct {
	uri, suite string
	components []string
	keyring    string // a file; empty for apt's default
}

// String is the source in sources.list format.
func (s aptSource) String() string {
	option := ""
	if s.keyring != "" {
		option = " [signed-by=" + s.keyring + "]"
	}
	return fmt.Sprintf("deb%s %s %s %s", option, s.uri, s.suite, strings.Join(s.components, " "))
}

// suiteName is the release a suite belongs to.
func (s aptSource) suiteName() string {
	name, _, _ := strings.Cut(strings.ReplaceAll(s.suite, "/", "-"), "-")
	return name
}

var debianComponents = []string{"main", "contrib", "non-free", "non-free-firmware"}

// debianSources reads the machine's apt sources below etc and returns those
// that are Debian's own for the release codename. Others (vendors, backports
// of somebody, anything marked trusted without a signature) do not get into a
// sandbox: whoever signs them was chosen for this machine, not for those.
//
// A source is Debian's own when it names a debian-archive keyring; or when it
// names none, its suite is this release and its components are Debian's. In
// the second case Debian's keyring is what it will be checked against.
func debianSources(etc, codename string) ([]aptSource, error) {
	files := []string{filepath.Join(etc, "apt/sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(etc, "apt/sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		sort.Strings(more)
		files = append(files, more...)
	}
	found := []aptSource{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		parse := parseList
		if strings.HasSuffix(f, ".sources") {
			parse = parseDeb822
		}
		for _, e := range parse(b) {
			for _, s := range e.debian(codename) {
				if !slices.ContainsFunc(found, func(o aptSource) bool { return o.String() == s.String() }) {
					found = append(found, s)
				}
			}
		}
	}
	return found, nil
}

// aptEntry is one entry of a sources file, options lower-cased.
type aptEntry struct {
	types, uris, suites, components []string
	options                         map[string]string
}

// debian returns the suites of e that are Debian's own.
func (e aptEntry) debian(codename string) []aptSource {
	if !slices.Contains(e.types, "deb") || e.options["enabled"] == "no" {
		return nil
	}
	for _, o := range []string{"trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure"} {
		if v, ok := e.options[o]; ok && v != "no" {
			return nil
		}
	}
	keyring := e.options["signed-by"]
	named := keyring != ""
	if named && !(filepath.IsAbs(keyring) && strings.HasPrefix(filepath.Base(keyring), "debian-archive") && !strings.ContainsAny(keyring, " ,]\n")) {
		return nil
	}
	components := slices.DeleteFunc(slices.Clone(e.components), func(c string) bool { return !slices.Contains(debianComponents, c) })
	if len(components) == 0 || !named && len(components) != len(e.components) {
		return nil
	}
	var list []aptSource
	for _, suite := range e.suites {
		if !slices.Contains([]string{codename, codename + "-updates", codename + "-security", codename + "/updates"}, suite) {
			continue
		}
		for _, uri := range e.uris {
			// packages of the machine's own disk cannot be told from vendors'
			if strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://") || strings.HasPrefix(uri, "mirror+") {
				list = append(list, aptSource{uri, suite, components, keyring})
			}
		}
	}
	return list
}

// parseList reads the one-line format: deb [option=value …] uri suite component…
func parseList(b []byte) []aptEntry {
	var list []aptEntry
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line = strings.TrimSpace(line)
		e := aptEntry{options: map[string]string{}}
		kind, rest, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(options) {
				k, v, _ := strings.Cut(o, "=")
				e.options[strings.ToLower(k)] = v
			}
			rest = after
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			e.types, e.uris, e.suites, e.components = []string{kind}, f[:1], f[1:2], f[2:]
			list = append(list, e)
		}
	}
	return list
}

// parseDeb822 reads stanzas of "Key: value" with continuation lines.
func parseDeb822(b []byte) []aptEntry {
	var list []aptEntry
	fields, last := map[string]string{}, ""
	flush := func() {
		if len(fields) > 0 {
			e := aptEntry{options: map[string]string{}}
			for k, v := range fields {
				switch k {
				case "types":
					e.types = strings.Fields(v)
				case "uris":
					e.uris = strings.Fields(v)
				case "suites":
					e.suites = strings.Fields(v)
				case "components":
					e.components = strings.Fields(v)
				default:
					e.options[k] = v
				}
			}
			list = append(list, e)
		}
		fields, last = map[string]string{}, ""
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				fields[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			if k, v, ok := strings.Cut(line, ":"); ok {
				last = strings.ToLower(k)
				fields[last] = strings.TrimSpace(v)
			}
		}
	}
	flush()
	return list
}

// osRelease reads a key of an os-release file.
func osRelease(b []byte, key string) string {
	for line := range strings.SplitSeq(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, key+"="); ok {
			return strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return ""
}

// aptOptions picks from `apt-config dump` what a build must share with the
// machine to reach its mirror: proxies, TLS files, and the owner's decision
// about dates (a frozen mirror's indexes expire). What would accept unsigned
// packages is never taken over.
func aptOptions(dump string) []string {
	var options []string
	for line := range strings.SplitSeq(dump, "\n") {
		line = strings.TrimSpace(line)
		key, _, ok := strings.Cut(line, " ")
		if !ok || strings.HasSuffix(line, ` "";`) {
			continue
		}
		k := strings.ToLower(key)
		switch {
		case !strings.HasPrefix(k, "acquire::"):
		case strings.HasSuffix(k, "::proxy"), strings.Contains(k, "::proxy::"), strings.HasSuffix(k, "proxy-auto-detect"),
			strings.HasSuffix(k, "::cainfo"), strings.HasSuffix(k, "::sslcert"), strings.HasSuffix(k, "::sslkey"),
			k == "acquire::check-valid-until", k == "acquire::check-date", k == "acquire::retries":
			options = append(options, line)
		}
	}
	return options
}
