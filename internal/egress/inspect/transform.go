package inspect

import (
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// Transform sets headers of requests to a host by TLS, whatever the sandbox says in
// them.
type Transform struct {
	Host    string // a name, or *.NAME for all below it
	Port    uint16
	Headers []Header
	Secrets [][]byte // in their values; the proxy's, as those are
}

// Header is one that is set.
type Header struct {
	Name  string // in its canonical spelling
	Value []byte
}

// The most a wire's transforms may be.
const (
	maxTransforms = 64
	maxSet        = 32
)

// transforms are those of a wire, by what their hosts are called.
type transforms struct {
	exact, below map[place]*Transform // below NAME
}

func newTransforms(list []*Transform) (ts transforms, err error) {
	if len(list) > maxTransforms {
		return ts, fmt.Errorf("%d transforms; a sandbox has at most %d", len(list), maxTransforms)
	}
	ts = transforms{map[place]*Transform{}, map[place]*Transform{}}
	for _, t := range list {
		name, star := strings.CutPrefix(t.Host, "*.")
		h, err := netaddr.ParseHost(name)
		if err != nil || h.Name() != name || t.Port == 0 {
			return ts, fmt.Errorf("a transform is for a name, or for those below one: %.100q is neither", t.Host)
		}
		if err := t.check(); err != nil {
			return ts, err
		}
		into := ts.exact
		if star {
			into = ts.below
		}
		if into[place{h, t.Port}] != nil {
			return ts, fmt.Errorf("there is more than one transform for %s", t.Host)
		}
		into[place{h, t.Port}] = t
	}
	return ts, nil
}

// check says what about a transform cannot be.
func (t *Transform) check() error {
	if len(t.Headers) > maxSet {
		return fmt.Errorf("the transform for %s sets more than %d headers", t.Host, maxSet)
	}
	for _, h := range t.Headers {
		if !plainField(h.Name) || h.Name != http.CanonicalHeaderKey(h.Name) || !httpguts.ValidHeaderFieldValue(string(h.Value)) {
			return fmt.Errorf("the transform for %s cannot set the header %.80q", t.Host, h.Name)
		}
	}
	return nil
}

// of is the transform of requests to a host: the most specific one; nil: none.
func (ts *transforms) of(at place) *Transform {
	if t := ts.exact[at]; t != nil || len(ts.below) == 0 {
		return t
	}
	for rest := at.host.Name(); ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return nil
		}
		rest = rest[i+1:]
		if h, err := netaddr.ParseHost(rest); err == nil {
			if t := ts.below[place{h, at.port}]; t != nil {
				return t
			}
		}
	}
}

// set sets the headers.
func (t *Transform) set(h http.Header) {
	for _, x := range t.Headers {
		h[x.Name] = []string{string(x.Value)}
	}
}

func (ts *transforms) wipe() {
	for _, list := range []map[place]*Transform{ts.exact, ts.below} {
		for _, t := range list {
			for _, h := range t.Headers {
				clear(h.Value)
			}
			for _, s := range t.Secrets {
				clear(s)
			}
		}
	}
}
