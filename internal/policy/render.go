package policy

import (
	"bytes"
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// YAML is the document as Parse reads it, without what are defaults.
func (d *Document) YAML() []byte {
	var b bytes.Buffer
	b.WriteString("version: 1\n")
	scalar := func(key, value string) {
		text, _ := yaml.Marshal(map[string]string{key: value}) // strings always can be
		b.Write(text)
	}
	if d.Name != "" {
		scalar("name", d.Name)
	}
	if d.Mode == ModeObserve {
		scalar("mode", string(d.Mode))
	}
	if d.MinIsolation > sandbox.IsolationNone {
		scalar("min_isolation", d.MinIsolation.String())
	}
	if len(d.Include) > 0 {
		text, _ := yaml.Marshal(map[string][]string{"include": d.Include})
		b.Write(text)
	}
	if d.Rego != "" {
		scalar("rego", d.Rego)
	}
	if d.Unconnected() {
		return b.Bytes()
	}
	b.WriteString("allow:")
	writeRules(&b, d.Allow, false)
	if len(d.Deny) > 0 {
		b.WriteString("deny:")
		writeRules(&b, d.Deny, true)
	}
	return b.Bytes()
}

// writtenRule is a rule as it is written.
type writtenRule struct {
	ID       string         `yaml:"id,omitempty"`
	Host     []string       `yaml:"host,omitempty,flow"`
	CIDR     []string       `yaml:"cidr,omitempty,flow"`
	Ports    []string       `yaml:"ports,omitempty,flow"`
	Protocol []string       `yaml:"protocol,omitempty,flow"`
	Inspect  string         `yaml:"inspect,omitempty"`
	Methods  []string       `yaml:"methods,omitempty,flow"`
	Paths    []string       `yaml:"paths,omitempty,flow"`
	Budget   map[string]any `yaml:"budget,omitempty,flow"`
	Note     string         `yaml:"note,omitempty"`
}

func writeRules(b *bytes.Buffer, rules []Rule, deny bool) {
	if len(rules) == 0 {
		b.WriteString(" []\n")
		return
	}
	b.WriteString("\n")
	for i := range rules {
		text, _ := yaml.Marshal([]writtenRule{rules[i].written(deny)})
		for line := range bytes.Lines(text) {
			b.WriteString("  ")
			b.Write(line)
		}
	}
}

func (r *Rule) written(deny bool) writtenRule {
	w := writtenRule{ID: r.ID, Methods: r.Methods, Paths: r.Paths, Note: r.Note}
	if r.Opaque {
		w.Inspect = "none"
	}
	stars := false
	for _, h := range r.Hosts {
		w.Host = append(w.Host, h.String())
		stars = stars || h.Stars > 0
	}
	for _, p := range r.Networks {
		w.CIDR = append(w.CIDR, p.String())
	}
	usual := PortRange{443, 443}
	if deny {
		usual = allPorts[0]
	}
	if len(r.Ports) != 1 || r.Ports[0] != usual || r.Protocols.has(ProtocolTCP) {
		for _, p := range r.Ports {
			w.Ports = append(w.Ports, p.String())
		}
	}
	if r.Protocols != usualProtocols {
		for p := ProtocolTCP; p <= ProtocolHTTP; p++ {
			if r.Protocols.has(p) {
				w.Protocol = append(w.Protocol, p.String())
			}
		}
	}
	if deny {
		return w
	}
	w.Budget = map[string]any{}
	for key, n := range map[string]int64{"connections": r.Budget.Connections, "concurrent": r.Budget.Concurrent, "names": r.Budget.Names} {
		if n > 0 && (key != "names" || stars && n != defaultNames) {
			w.Budget[key] = n
		}
	}
	for key, n := range map[string]int64{"upload": r.Budget.Upload, "download": r.Budget.Download} {
		if n > 0 {
			w.Budget[key] = fmt.Sprintf("%dB", n)
		}
	}
	if r.Budget.Rate > 0 {
		w.Budget["rate"] = fmt.Sprintf("%d/%s", r.Budget.Rate, map[time.Duration]string{time.Second: "s", time.Minute: "m", time.Hour: "h"}[r.Budget.Per])
	}
	return w
}
