package policy

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Parse reads a document, YAML or JSON, of at most 256 KiB. Unknown and repeated
// keys, anchors and further documents are refused. file is for messages, which
// begin "FILE:LINE: ". Errors: KindInvalid, KindTooLarge.
func Parse(file string, text []byte) (*Document, error) {
	if len(text) > maxDocument {
		return nil, sandbox.Errorf("policy", sandbox.KindTooLarge, "%s: a policy has at most 256 KiB", file)
	}
	if t := bytes.TrimSpace(text); bytes.HasPrefix(t, []byte("{")) {
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" ")) // in JSON just space, in YAML an error
	}
	r := &reader{file: file}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var root yaml.Node
	if err := dec.Decode(&root); errors.Is(err, io.EOF) {
		return nil, r.errorf(1, "the policy is empty").WithHint("a policy that allows nothing is written `allow: []`")
	} else if err != nil {
		return nil, r.yaml(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, r.yaml(err)
		}
		return nil, r.errorf(1, "there is more than one document")
	}
	d := &Document{File: file, Mode: ModeEnforce}
	err := r.document(root.Content[0], d)
	d.connects = d.connects || d.MinIsolation == sandbox.IsolationNone // what else would it be about
	return d, err
}

// reader turns nodes into a document.
type reader struct{ file string }

func (r *reader) errorf(line int, format string, args ...any) *sandbox.Error {
	return sandbox.Errorf("policy", sandbox.KindInvalid, "%s:%d: "+format, append([]any{r.file, line}, args...)...)
}

// yaml makes an error of the library, "yaml: line 3: …", one of ours.
func (r *reader) yaml(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if n, what, ok := strings.Cut(rest, ": "); ok {
			if i, err := strconv.Atoi(n); err == nil {
				line, text = i, what
			}
		}
	}
	e := r.errorf(line, "this is not YAML: %s", text)
	if strings.Contains(text, "alphabetic or numeric") || strings.Contains(text, "anchor") { // a star begins an alias
		e = e.WithHint(`put a pattern between quotation marks: "*.example.com"`)
	}
	return e
}

// mapping reads a mapping whose keys are those of known.
func (r *reader) mapping(n *yaml.Node, what string, known map[string]func(*yaml.Node) error) error {
	if n.Kind != yaml.MappingNode || n.Anchor != "" {
		return r.errorf(n.Line, "%s is a mapping of keys to values", what)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read, ok := known[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !ok:
			var names []string
			for k := range known {
				names = append(names, k)
			}
			slices.Sort(names)
			return r.errorf(key.Line, "%s has no key %.40q", what, key.Value).WithHint("it may have %s", strings.Join(names, ", "))
		case seen[key.Value]:
			return r.errorf(key.Line, "%q is there twice", key.Value)
		case value.Kind == yaml.AliasNode || value.Anchor != "":
			return r.errorf(value.Line, "anchors and aliases are not used in policies")
		}
		seen[key.Value] = true
		if err := read(value); err != nil {
			return err
		}
	}
	return nil
}

// text reads one scalar.
func (r *reader) text(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Anchor != "" || n.Tag == "!!null" || n.Tag == "!!binary" || n.Value == "" {
		return "", r.errorf(n.Line, "a value is missing here")
	}
	return n.Value, nil
}

// texts reads one scalar, or a list of them, and hands each on.
func (r *reader) texts(n *yaml.Node, each func(string) error) error {
	list := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		list = n.Content
	}
	if len(list) == 0 {
		return r.errorf(n.Line, "the list is empty")
	}
	for _, n := range list {
		s, err := r.text(n)
		if err != nil {
			return err
		}
		if err := each(s); err != nil {
			return r.errorf(n.Line, "%w", err)
		}
	}
	return nil
}

func (r *reader) document(n *yaml.Node, d *Document) error {
	return r.mapping(n, "a policy", map[string]func(*yaml.Node) error{
		"version": func(n *yaml.Node) error {
			if n.Value != "1" {
				return r.errorf(n.Line, "version %.20q is not known; this is version 1", n.Value)
			}
			return nil
		},
		"name": func(n *yaml.Node) (err error) {
			if d.Name, err = r.text(n); err == nil && !reName.MatchString(d.Name) {
				err = r.errorf(n.Line, "%.80q is not a name: lower-case letters, digits, dots and hyphens", d.Name)
			}
			return err
		},
		"min_isolation": func(n *yaml.Node) error {
			class, err := sandbox.ParseIsolation(n.Value)
			if err != nil || class == sandbox.IsolationNone || n.Kind != yaml.ScalarNode {
				return r.errorf(n.Line, "%.40q is no isolation class to demand", n.Value).WithHint("shared-kernel, user-kernel, hypervisor or confidential")
			}
			d.MinIsolation = class
			return nil
		},
		"mode": func(n *yaml.Node) error {
			d.connects = true
			d.Mode = Mode(n.Value)
			if d.Mode != ModeEnforce && d.Mode != ModeObserve {
				return r.errorf(n.Line, "%.40q is not a mode: enforce or observe", n.Value)
			}
			return nil
		},
		"include": func(n *yaml.Node) error {
			return r.texts(n, func(s string) error { d.Include = append(d.Include, s); return nil })
		},
		"allow": func(n *yaml.Node) (err error) { d.connects = true; d.Allow, err = r.rules(n, "allow"); return err },
		"deny":  func(n *yaml.Node) (err error) { d.connects = true; d.Deny, err = r.rules(n, "deny"); return err },
		"rego": func(n *yaml.Node) (err error) {
			d.connects = true
			d.RegoLine = n.Line
			if n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
				d.RegoLine++ // the text begins below the key
			}
			d.Rego, err = r.text(n)
			return err
		},
	})
}

func (r *reader) rules(n *yaml.Node, effect string) ([]Rule, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, r.errorf(n.Line, "%s is a list of rules", effect)
	}
	var list []Rule
	for _, n := range n.Content {
		rule, err := r.rule(n, effect)
		if err != nil {
			return nil, err
		}
		list = append(list, rule)
	}
	return list, nil
}

// rule reads one rule; a scalar is a rule for that host.
func (r *reader) rule(n *yaml.Node, effect string) (Rule, error) {
	rule := Rule{line: n.Line}
	known := r.about(&rule)
	if n.Kind == yaml.ScalarNode {
		if err := known["host"](n); err != nil {
			return rule, err
		}
		return rule, r.finish(n, &rule, effect)
	}
	known["id"] = func(n *yaml.Node) (err error) {
		if rule.ID, err = r.text(n); err == nil && !reName.MatchString(rule.ID) {
			err = r.errorf(n.Line, "%.80q is not an id: lower-case letters, digits, dots and hyphens", rule.ID)
		}
		return err
	}
	known["note"] = func(n *yaml.Node) (err error) { rule.Note, err = r.text(n); return err }
	if effect == "allow" {
		known["protocol"] = func(n *yaml.Node) error {
			return r.texts(n, func(s string) error {
				p, err := ParseProtocol(s)
				rule.Protocols |= 1 << p
				return err
			})
		}
		known["inspect"] = func(n *yaml.Node) error {
			if rule.Opaque = n.Kind == yaml.ScalarNode && n.Value == "none"; !rule.Opaque {
				return r.errorf(n.Line, "%.40q is no way to inspect", n.Value).WithHint("write none, or leave it out: TLS and HTTP are inspected then")
			}
			return nil
		}
		known["budget"] = func(n *yaml.Node) error { return r.budget(n, &rule.Budget) }
	}
	if err := r.mapping(n, "a rule of "+effect, known); err != nil {
		return rule, err
	}
	return rule, r.finish(n, &rule, effect)
}

// about are the keys that say what a rule is about.
func (r *reader) about(rule *Rule) map[string]func(*yaml.Node) error {
	list := func(each func(string) error) func(*yaml.Node) error {
		return func(n *yaml.Node) error { return r.texts(n, each) }
	}
	return map[string]func(*yaml.Node) error{
		"host": list(func(s string) error {
			p, prefix, err := parseHost(s)
			switch {
			case err != nil:
				return err
			case prefix.IsValid():
				rule.Networks = append(rule.Networks, prefix)
			default:
				rule.Hosts = append(rule.Hosts, p)
			}
			return nil
		}),
		"cidr": list(func(s string) error {
			p, err := parsePrefix(s)
			rule.Networks = append(rule.Networks, p)
			return err
		}),
		"ports": list(func(s string) error {
			p, err := parsePorts(s)
			rule.Ports = append(rule.Ports, p)
			return err
		}),
		"methods": list(func(s string) error {
			m, err := parseMethod(s)
			rule.Methods = append(rule.Methods, m)
			return err
		}),
		"paths": list(func(s string) error {
			p, err := parsePath(s)
			rule.Paths = append(rule.Paths, p)
			return err
		}),
	}
}

// finish fills in the defaults of a rule and checks it as a whole.
func (r *reader) finish(n *yaml.Node, rule *Rule, effect string) error {
	stars := slices.ContainsFunc(rule.Hosts, func(p Pattern) bool { return p.Stars > 0 })
	switch {
	case len(rule.Hosts)+len(rule.Networks) == 0:
		return r.errorf(n.Line, "the rule names nothing").WithHint("give it `host` or `cidr`")
	case rule.Protocols.has(ProtocolTCP) && len(rule.Ports) == 0:
		return r.errorf(n.Line, "a rule for raw TCP names its ports")
	case rule.Budget.Names > 0 && !stars:
		return r.errorf(n.Line, "a budget of names is for wildcards")
	case rule.Opaque && rule.Protocols == 1<<ProtocolTCP:
		return r.errorf(n.Line, "`inspect: none` is for TLS and HTTP; raw TCP is never inspected")
	case rule.Opaque && rule.aboutRequests():
		return r.errorf(n.Line, "methods and paths are not seen where `inspect: none`")
	case rule.Protocols.has(ProtocolTCP) && rule.aboutRequests():
		return r.errorf(n.Line, "methods and paths are not seen in raw TCP").WithHint("make it two rules")
	case effect == "deny" && len(rule.Networks) > 0 && rule.aboutRequests(): // a name may have several, and others tomorrow
		return r.errorf(n.Line, "which address a request goes to is not known before: a deny rule with methods or paths names hosts").WithHint("deny the network altogether, or allow it with methods and paths")
	case len(rule.Methods) > maxMethods || len(rule.Paths) > maxPaths:
		return r.errorf(n.Line, "a rule has at most %d methods and %d paths", maxMethods, maxPaths)
	}
	slices.Sort(rule.Methods)
	rule.Methods = slices.Compact(rule.Methods)
	slices.Sort(rule.Paths)
	if rule.Paths = slices.Compact(rule.Paths); slices.Contains(rule.Paths, "/") {
		rule.Paths = nil // all
	}
	if rule.Protocols == 0 {
		rule.Protocols = usualProtocols
	}
	if len(rule.Ports) == 0 {
		rule.Ports = []PortRange{{443, 443}}
		if effect == "deny" {
			rule.Ports = allPorts
		}
	}
	if stars && rule.Budget.Names == 0 && effect == "allow" {
		rule.Budget.Names = defaultNames
	}
	return nil
}

func (r *reader) budget(n *yaml.Node, b *Budget) error {
	count := func(to *int64) func(*yaml.Node) error {
		return func(n *yaml.Node) error {
			i, err := strconv.ParseInt(n.Value, 10, 64)
			if err != nil || i < 1 || n.Kind != yaml.ScalarNode {
				return r.errorf(n.Line, "%.40q is not a positive number", n.Value)
			}
			*to = i
			return nil
		}
	}
	size := func(to *int64) func(*yaml.Node) error {
		return func(n *yaml.Node) error {
			i, err := sandbox.ParseSize(n.Value)
			if err != nil || n.Kind != yaml.ScalarNode {
				return r.errorf(n.Line, "%.40q is not a size", n.Value).WithHint("write a number and a unit: 64M, 64MiB, 0.5G")
			}
			*to = i
			return nil
		}
	}
	return r.mapping(n, "a budget", map[string]func(*yaml.Node) error{
		"upload": size(&b.Upload), "download": size(&b.Download),
		"connections": count(&b.Connections), "concurrent": count(&b.Concurrent), "names": count(&b.Names),
		"rate": func(n *yaml.Node) error {
			m := reRate.FindStringSubmatch(n.Value)
			if m == nil || n.Kind != yaml.ScalarNode {
				return r.errorf(n.Line, "%.40q is not a rate", n.Value).WithHint("write connections per second, minute or hour: 10/s, 100/m")
			}
			b.Rate, _ = strconv.ParseInt(m[1], 10, 64) // at most nine digits
			b.Per = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[m[2]]
			return nil
		},
	})
}
