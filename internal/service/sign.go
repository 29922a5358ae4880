package service

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const signedFor = time.Hour // unless a request says otherwise

// SignFile makes a URL that opens one file for one operation, as one user, for a
// time, to whoever has it.
func (s *Service) SignFile(ctx context.Context, req *v1.SignFileRequest) (*v1.SignedURL, error) {
	const method = "FileService.SignFile"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	u := fileURL{path: req.GetPath(), user: req.GetUser(), operation: req.GetOperation(), by: p.ID}
	if err := needs("sign", "id", req.GetId(), "path", u.path); err != nil {
		return nil, err
	}
	scope, ok := signedScopes[u.operation]
	switch {
	case !ok:
		return nil, sandbox.Errorf("sign", sandbox.KindInvalid, "no operation %.16q", u.operation).WithHint("read or write")
	case !p.Can(scope):
		err := sandbox.Errorf("sign", sandbox.KindDenied, "scope %s is needed", scope)
		s.Refused(ctx, Refusal{Method: method, Principal: p, Err: err})
		return nil, err
	case s.Tokens == nil:
		return nil, sandbox.Errorf("sign", sandbox.KindUnsupported, "this server signs no URLs")
	}
	life := time.Duration(req.GetExpiresIn()) * time.Second
	if life == 0 {
		life = signedFor
	}
	until := s.Orchestrator.Clock().Add(life).Truncate(time.Second)
	h, err := s.Orchestrator.SignFile(ctx, who, req.GetId(), u.path, u.user, u.operation, until)
	if err != nil {
		return nil, err
	}
	u.expires = strconv.FormatInt(until.Unix(), 10)
	q := url.Values{"path": {u.path}, "operation": {u.operation}, "expires": {u.expires}, "by": {u.by}, "signature": {u.sign(s.Tokens, h.Tenant, h.ID)}}
	if u.user != "" {
		q.Set("user", u.user)
	}
	return &v1.SignedURL{Url: "/v1/sandboxes/" + string(h.ID) + "/files?" + q.Encode(), ExpiresAt: stamp(until)}, nil
}

// signedScopes are the operations a URL can be signed for, and signedMethods how
// they are asked for.
var (
	signedScopes  = map[string]auth.Scope{"read": auth.FilesRead, "write": auth.FilesWrite}
	signedMethods = map[string]string{http.MethodGet: "read", http.MethodHead: "read", http.MethodPut: "write"}
)

// fileURL is what a signature covers, beside the sandbox: everything in the URL.
type fileURL struct{ path, user, operation, expires, by string }

// sign returns the signature, by a key of the sandbox's own.
func (u fileURL) sign(t *auth.Tokens, tenant sandbox.TenantID, id sandbox.ID) string {
	m := hmac.New(sha256.New, []byte(t.Token(auth.UseFile, tenant, id)))
	for _, part := range []string{"firebreak file URL v1", u.operation, u.path, u.user, u.expires, u.by} {
		m.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		m.Write([]byte(part))
	}
	return "v1_" + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// FileURLHolder returns who acts by a signed URL: somebody on the signer's behalf,
// who may do what was signed, in that sandbox. plain is the query that the
// operation then takes. All that is wrong with the URL is one error, so that it
// tells a stranger nothing: KindUnauthenticated.
func (s *Service) FileURLHolder(_ context.Context, id, method, query string) (p auth.Principal, plain string, err error) {
	refused := sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "the URL's signature is not valid here and now").
		WithHint("its time may be over or its sandbox have ended; it fits one file, user and operation (%s): ask for another one", signedMethods[method])
	q, err := url.ParseQuery(query)
	h, ok := s.Orchestrator.Whose(sandbox.ID(id))
	if err != nil || !ok || s.Tokens == nil {
		return auth.Principal{}, "", refused
	}
	for name, values := range q {
		switch name {
		case "path", "user", "operation", "expires", "by", "signature":
		default:
			return auth.Principal{}, "", refused
		}
		if len(values) != 1 {
			return auth.Principal{}, "", refused
		}
	}
	u := fileURL{path: q.Get("path"), user: q.Get("user"), operation: q.Get("operation"), expires: q.Get("expires"), by: q.Get("by")}
	valid := hmac.Equal([]byte(q.Get("signature")), []byte(u.sign(s.Tokens, h.Tenant, h.ID)))
	until, err := strconv.ParseInt(u.expires, 10, 64)
	if !valid || err != nil || u.operation != signedMethods[method] || s.Orchestrator.Clock().Unix() >= until {
		return auth.Principal{}, "", refused
	}
	rest := url.Values{"path": {u.path}}
	if u.user != "" {
		rest.Set("user", u.user)
	}
	return auth.Principal{Tenant: h.Tenant, ID: "signed:" + u.by, Role: auth.Developer, Scopes: []auth.Scope{signedScopes[u.operation]}}, rest.Encode(), nil
}
