package service

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// transforms are what a request says about headers, as they are kept: with secrets
// by their names, and sealed where a value holds none. Errors: KindInvalid,
// KindUnsupported; KindNotFound for a secret; KindDenied without the scope to say
// what secrets may be used for.
func (s *Service) transforms(ctx context.Context, method string, p auth.Principal, list []*v1.HeaderTransform) ([]orchestrator.Transform, error) {
	var out []orchestrator.Transform
	seen, found, n := map[string]bool{}, map[string]string{}, 0
	for _, t := range list {
		if n += len(t.GetHeaders()); n > maxSetHeaders {
			return nil, sandbox.Errorf("transform", sandbox.KindTooLarge, "more than %d headers are set", maxSetHeaders).WithHint("set fewer")
		}
		host, err := transformHost(t.GetHost())
		if err != nil {
			return nil, err
		}
		if seen[host] {
			return nil, sandbox.Errorf("transform", sandbox.KindInvalid, "%s: there is more than one transform", host).WithHint("put all headers into one")
		}
		seen[host] = true
		kept := orchestrator.Transform{Host: host}
		names := map[string]bool{}
		for _, name := range slices.Sorted(maps.Keys(t.GetHeaders())) {
			h, err := s.transformHeader(ctx, method, p, host, name, t.GetHeaders()[name], found)
			if err != nil {
				return nil, err
			}
			if names[h.Name] {
				return nil, sandbox.Errorf("transform", sandbox.KindInvalid, "%s: the header %s is set twice", host, h.Name).WithHint("headers differ in more than capitals")
			}
			names[h.Name] = true
			kept.Headers = append(kept.Headers, h)
		}
		out = append(out, kept)
	}
	return out, nil
}

// transformHost is a host in its one spelling.
func transformHost(text string) (string, error) {
	bad := func(why string) (string, error) {
		return "", sandbox.Errorf("transform", sandbox.KindInvalid, "host %.100q %s", text, why).WithHint("write a name like api.example.com, or *.example.com for those below it")
	}
	star, rest := "", text
	if r, ok := strings.CutPrefix(text, "*."); ok {
		star, rest = "*.", r
	}
	r, err := policy.ParseAllow(text)
	switch {
	case err != nil:
		return bad("is no name: " + explained(err))
	case len(r.Hosts) != 1 || r.Hosts[0].Stars > 1 || strings.ContainsAny(rest, "*:[]"):
		return bad("is an address, has a port, or too many stars")
	}
	return star + r.Hosts[0].Name, nil
}

func explained(err error) string {
	var e *sandbox.Error
	if errors.As(err, &e) {
		return e.Message()
	}
	return err.Error()
}

// maxSetHeaders bounds the headers of one sandbox: each may have to be sealed.
const maxSetHeaders = 256

// transformHeader is one header as it is kept. found are the names of secrets that
// were looked up.
func (s *Service) transformHeader(ctx context.Context, method string, p auth.Principal, host, name, value string, found map[string]string) (h orchestrator.TransformHeader, err error) {
	if h.Name, err = broker.CheckHeader(name); err != nil {
		return h, err
	}
	if s.Broker == nil {
		return h, sandbox.Errorf("transform", sandbox.KindUnsupported, "no secrets are kept here").WithHint("a server keeps them: `firebreak serve`")
	}
	if value == redacted {
		return h, sandbox.Errorf("transform", sandbox.KindInvalid, "%s: the value of %s is what answers show in place of one", host, h.Name).WithHint("give the value itself")
	}
	v, err := broker.ParseHeaderValue(value)
	if err != nil {
		return h, err
	}
	secrets := v.Secrets()
	if len(secrets) == 0 {
		if strings.Trim(value, " \t") != value {
			return h, sandbox.Errorf("transform", sandbox.KindInvalid, "%s: the value of %s begins or ends with a space", host, h.Name).WithHint("a field of a request cannot")
		}
		plain := broker.NewSecret([]byte(value))
		defer plain.Destroy()
		h.Sealed, err = s.Broker.Seal(p.Tenant, orchestrator.SealedName, plain)
		return h, err
	}
	if _, err := auth.Require(ctx, auth.BindingWrite); err != nil {
		s.Refused(ctx, Refusal{Method: method, Principal: p, Err: err})
		return h, err
	}
	for _, name := range secrets {
		if found[name] != "" {
			continue
		}
		if found[name], err = s.secretCalled(ctx, p.Tenant, name); err != nil {
			return h, err
		}
	}
	h.Value = v.Rename(found).Text()
	return h, nil
}

// secretCalled is the name of a secret that is there: the one given, or, as E2B has
// it, that in small letters.
func (s *Service) secretCalled(ctx context.Context, tenant sandbox.TenantID, name string) (string, error) {
	for _, spelt := range []string{name, strings.ToLower(name)} {
		row, err := s.Store.Tenant(tenant).Secret(ctx, spelt)
		if err == nil || sandbox.KindOf(err) != sandbox.KindNotFound {
			return row.Name, err
		}
	}
	return "", noSecret(name)
}

// redacted is a value in an answer that may be a secret.
const redacted = "[redacted]"

func toTransforms(list []orchestrator.Transform) (out []*v1.HeaderTransform) {
	for _, t := range list {
		h := &v1.HeaderTransform{Host: t.Host, Headers: map[string]string{}}
		for _, x := range t.Headers {
			h.Headers[x.Name] = x.Value
			if x.Value == "" {
				h.Headers[x.Name] = redacted
			}
		}
		out = append(out, h)
	}
	return out
}
