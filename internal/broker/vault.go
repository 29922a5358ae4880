package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// vault is a field of a secret in a KV store of version 2, as OpenBao and HashiCorp
// Vault have it. Where the store is, and who asks, the server's environment says:
// BAO_ADDR, BAO_TOKEN or a file named by BAO_TOKEN_FILE, BAO_CACERT, BAO_NAMESPACE, or
// the same with VAULT_.
type vault struct{ mount, path, field string }

var (
	reVault      = regexp.MustCompile(`^vault:([A-Za-z0-9_-]{1,64})/([A-Za-z0-9_./-]{1,512})#([A-Za-z0-9_.-]{1,128})$`)
	errRedirects = errors.New("it answers with a redirect, which is not followed")
)

const (
	vaultTime   = 10 * time.Second
	maxVault    = 1 << 20 // bytes of an answer
	vaultPrefix = "vault:"
)

// parseVault reads vault:MOUNT/PATH#FIELD.
func parseVault(s string) (v vault, ok bool) {
	m := reVault.FindStringSubmatch(s)
	if m == nil {
		return v, false
	}
	for part := range strings.SplitSeq(m[2], "/") {
		if strings.Trim(part, ".") == "" {
			return v, false
		}
	}
	return vault{m[1], m[2], m[3]}, true
}

func (v vault) String() string { return vaultPrefix + v.mount + "/" + v.path + "#" + v.field }

// setting is what the server's environment says.
func setting(name string) string {
	if v := os.Getenv("BAO_" + name); v != "" {
		return v
	}
	return os.Getenv("VAULT_" + name)
}

// read asks the store. Errors say nothing of what it answered.
func (v vault) read(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, vaultTime)
	defer cancel()
	req, err := v.request(ctx)
	if err != nil {
		return nil, err
	}
	c, err := vaultClient()
	if err != nil {
		return nil, err
	}
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) { // which quotes the URL
			err = e.Err
		}
		return nil, fmt.Errorf("the store cannot be reached: %w", err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return nil, errors.New("the store denies it to the server's token")
	case http.StatusNotFound:
		return nil, errors.New("the store has no such secret, or its latest version is deleted")
	case http.StatusServiceUnavailable:
		return nil, errors.New("the store is sealed, or stands by")
	default:
		return nil, fmt.Errorf("the store answers with status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxVault+1))
	defer clear(body)
	var answer struct {
		Data struct {
			Data map[string]json.RawMessage `json:"data"`
		} `json:"data"`
	}
	if err != nil || len(body) > maxVault || json.Unmarshal(body, &answer) != nil {
		return nil, errors.New("the store answers with what is no secret of a KV store of version 2")
	}
	text, ok := answer.Data.Data[v.field]
	if !ok {
		return nil, errors.New("the secret has no such field")
	}
	var value string
	if json.Unmarshal(text, &value) != nil {
		return nil, errors.New("the field is no text")
	}
	return []byte(value), nil
}

// request is what asks for the secret.
func (v vault) request(ctx context.Context) (*http.Request, error) {
	at, err := url.Parse(setting("ADDR"))
	if err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != "http" || at.User != nil {
		return nil, errors.New("the server's environment has no BAO_ADDR or VAULT_ADDR, or one that is no URL")
	}
	token := setting("TOKEN")
	if file := setting("TOKEN_FILE"); token == "" && file != "" {
		b, err := Reference{file: file}.read(ctx)
		if err != nil {
			return nil, fmt.Errorf("the token's file: %w", err)
		}
		token = string(trimLine(b))
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("the server's environment has no token for the store")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.JoinPath("v1", v.mount, "data", v.path).String(), nil)
	if err != nil {
		return nil, errors.New("the address of the store is no URL")
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if ns := setting("NAMESPACE"); ns != "" {
		req.Header.Set("X-Vault-Namespace", ns)
	}
	return req, nil
}

// vaultClient reaches the store by the guarded dialer: a private address is the
// operator's choice, metadata is nobody's. It follows no redirect, with the token on it,
// and uses no proxy.
func vaultClient() (*http.Client, error) {
	d := &netaddr.Dialer{Allow: func(netaddr.Host, uint16, netip.Addr, netaddr.Class) bool { return true }}
	t := &http.Transport{DialContext: d.DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, TLSHandshakeTimeout: vaultTime, DisableKeepAlives: true}
	if file := setting("CACERT"); file != "" {
		pem, err := os.ReadFile(file)
		pool := x509.NewCertPool()
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			return nil, errors.New("the certificate of the store's authority cannot be read")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirects }}, nil
}
