package broker

import (
	"bytes"
	"context"
	"net/textproto"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// HeaderValue is the value of a header that the router sets: text, and secrets by
// their names.
type HeaderValue struct {
	parts []headerPart
}

type headerPart struct{ text, secret string } // one of them

// A reference to a secret in the value of a header, as E2B's clients write it.
const (
	openReference  = "${e2b."
	openSecret     = openReference + "secrets."
	closeReference = "}"
)

// maxHeaderValue bounds a value as it is written, and as it is sent.
const maxHeaderValue = 8 << 10

// maxReferences bounds how many secrets a value refers to.
const maxReferences = 16

// CheckHeader returns the name of a header in its one spelling, or refuses one that
// says where a message ends or to whom it goes. Errors: KindInvalid.
func CheckHeader(name string) (string, error) {
	if !reHeader.MatchString(name) || strings.Contains(name, "_") {
		return "", invalid("header: %.80q is no name of a header", name).WithHint("letters, digits and hyphens, as in X-Api-Key")
	}
	name = textproto.CanonicalMIMEHeaderKey(name)
	if slices.Contains(notHeaders, name) || slices.Contains(notSet, name) {
		return "", invalid("header: %s says how a message is to be read, and is not set", name).WithHint("name the header that the host reads")
	}
	return name, nil
}

// notSet say how a body is to be read, or what is to be sent of an answer.
var notSet = []string{"Accept-Encoding", "Content-Encoding", "Content-Type", "Range", "Http2-Settings", "Forwarded", "Via"}

// ParseHeaderValue reads a value, in which ${e2b.secrets.NAME} stands for a secret.
// Errors: KindInvalid, which say nothing of what is there; KindUnsupported for other
// references of that form.
func ParseHeaderValue(s string) (v HeaderValue, err error) {
	if len(s) > maxHeaderValue || !plainValue(s) {
		return v, invalid("header: the value is longer than 8 KiB, or has a control character").WithHint("what goes into a header is one line")
	}
	for s != "" {
		text, rest, found := strings.Cut(s, openReference)
		if text != "" {
			v.parts = append(v.parts, headerPart{text: text})
		}
		if !found {
			return v, nil
		}
		what, after, closed := strings.Cut(rest, closeReference)
		name, secret := strings.CutPrefix(openReference+what, openSecret)
		switch {
		case !closed:
			return v, invalid("header: a reference in the value does not end").WithHint("write ${e2b.secrets.NAME}")
		case !secret:
			return v, sandbox.Errorf("header", sandbox.KindUnsupported, "${e2b.%.64s} is no secret: other references are not supported", what).WithHint("write ${e2b.secrets.NAME}")
		}
		if err := CheckSecretName(name); err != nil {
			return v, err
		}
		if v.parts = append(v.parts, headerPart{secret: name}); len(v.parts) > 2*maxReferences {
			return v, invalid("header: the value refers to too many secrets").WithHint("at most %d", maxReferences)
		}
		s = after
	}
	return v, nil
}

func plainValue(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// Secrets are the names of those that the value refers to, each once.
func (v HeaderValue) Secrets() (names []string) {
	for _, p := range v.parts {
		if p.secret != "" && !slices.Contains(names, p.secret) {
			names = append(names, p.secret)
		}
	}
	return names
}

// Rename puts other names in the place of those that the value refers to.
func (v HeaderValue) Rename(to map[string]string) HeaderValue {
	out := HeaderValue{parts: slices.Clone(v.parts)}
	for i, p := range out.parts {
		if name, ok := to[p.secret]; ok && p.secret != "" {
			out.parts[i].secret = name
		}
	}
	return out
}

// Text is the value as it is written.
func (v HeaderValue) Text() string {
	var b strings.Builder
	for _, p := range v.parts {
		if b.WriteString(p.text); p.secret != "" {
			b.WriteString(openSecret + p.secret + closeReference)
		}
	}
	return b.String()
}

// Resolve is the value as it is sent, and the secrets in it, all of which the caller
// overwrites. Errors: those of Source; KindUnavailable for what cannot be sent.
func (v HeaderValue) Resolve(ctx context.Context, from Source, tenant sandbox.TenantID) (value []byte, secrets [][]byte, err error) {
	defer func() {
		if err != nil {
			clear(value)
			for _, s := range secrets {
				clear(s)
			}
		}
	}()
	value = make([]byte, 0, maxHeaderValue) // grown, it would leave copies
	for _, p := range v.parts {
		value = append(value, p.text...)
		if p.secret == "" {
			continue
		}
		s, err := from.Get(ctx, tenant, p.secret)
		if err != nil {
			return value, secrets, err
		}
		room := true
		s.Use(func(plain []byte) {
			if room = len(value)+len(plain) <= cap(value); room {
				value = append(value, plain...)
				secrets = append(secrets, slices.Clone(plain))
			}
		})
		s.Destroy()
		if !room {
			return value, secrets, sandbox.Errorf("header", sandbox.KindUnavailable, "with the secret %s the header is longer than 8 KiB", p.secret).WithID(p.secret)
		}
	}
	return value, secrets, nil
}

// credentialHeaders say, by their names, that their values are credentials.
var credentialHeaders = []string{"Authorization", "Cookie", "Proxy-Authorization"}

// Credential is the part of a header's value that is a credential, as far as its name
// says so: of Authorization what follows the scheme. nil: none. It is a copy.
func Credential(name string, value []byte) []byte {
	lower := strings.ToLower(name)
	ends := func(with ...string) bool {
		return slices.ContainsFunc(with, func(s string) bool { return strings.HasSuffix(lower, s) })
	}
	if !slices.Contains(credentialHeaders, name) && !ends("-token", "-key", "apikey", "-secret", "-password", "-authorization") {
		return nil
	}
	if scheme, rest, ok := bytes.Cut(value, []byte(" ")); ok && !bytes.ContainsAny(scheme, "=:;") {
		value = rest
	}
	return bytes.Clone(bytes.TrimSpace(value))
}
