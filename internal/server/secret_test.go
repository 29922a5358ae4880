package server

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// said is what a server logs.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestSecretIsNeverSaid sends a secret in every way, right and wrong, on every wire:
// it is in no answer, no log and no file, and neither is its digest.
func TestSecretIsNeverSaid(t *testing.T) {
	r := newReal(t)
	const canary = "canarye81b4f"
	long := strings.Repeat(canary, 6000)
	message := func(m proto.Message) string {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	send := func(method, path, kind, body string, header ...string) (int, string) {
		req := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+r.owner)
		req.Header.Set("Content-Type", kind)
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		r.srv.ServeHTTP(w, req)
		return w.Code, w.Body.String()
	}
	const rest, rpc = "/v1/secrets/token", "/firebreak.v1.SecretService/SetSecret"
	for name, c := range map[string]struct {
		path, kind, body string
		ok               bool
	}{
		"right":                {rest, "application/json", `{"value":"` + canary + `"}`, true},
		"connect":              {rpc, "application/json", `{"name":"token","value":"` + canary + `"}`, true},
		"connect's messages":   {rpc, "application/proto", message(&v1.SetSecretRequest{Name: "token", Value: canary}), true},
		"no JSON":              {rest, "application/json", canary, false},
		"no quotes":            {rest, "application/json", `{"value":` + canary + `}`, false},
		"one quote":            {rest, "application/json", `{"value":"` + canary + `}`, false},
		"a list":               {rest, "application/json", `["` + canary + `"]`, false},
		"a list in it":         {rest, "application/json", `{"value":["` + canary + `"]}`, false},
		"an object in it":      {rest, "application/json", `{"value":{"` + canary + `":1}}`, false},
		"an escape":            {rest, "application/json", `{"value":"\` + canary + `"}`, false},
		"not UTF-8":            {rest, "application/json", "{\"value\":\"" + canary + "\xff\"}", false},
		"twice":                {rest, "application/json", `{"value":"` + canary + `","value":"` + canary + `"}`, false},
		"as a field":           {rest, "application/json", `{"` + canary + `":"x"}`, false},
		"another field":        {rest, "application/json", `{"secret":"` + canary + `"}`, false},
		"too long":             {rest, "application/json", `{"value":"` + long + `"}`, false},
		"lines":                {rest, "application/json", `{"value":"` + canary + `\n` + canary + `"}`, false},
		"a space":              {rest, "application/json", `{"value":"` + canary + ` "}`, false},
		"both":                 {rest, "application/json", `{"value":"` + canary + `","reference":"env:A"}`, false},
		"a query":              {rest + "?value=" + canary, "application/json", ``, false},
		"as a reference":       {rest, "application/json", `{"reference":"` + canary + `"}`, false},
		"connect, no JSON":     {rpc, "application/json", canary, false},
		"connect, no quotes":   {rpc, "application/json", `{"name":"token","value":` + canary + `}`, false},
		"connect, too long":    {rpc, "application/json", `{"name":"token","value":"` + long + `"}`, false},
		"connect, no message":  {rpc, "application/proto", canary, false},
		"connect, a bad name":  {rpc, "application/proto", message(&v1.SetSecretRequest{Name: "..", Value: canary}), false},
		"connect, not a field": {rpc, "application/proto", message(&v1.SetSecretRequest{Name: "token"}) + "\xba\x3e" + string(rune(len(canary))) + canary, false},
	} {
		method := "PUT"
		if c.path == rpc {
			method = "POST"
		}
		code, answer := send(method, c.path, c.kind, c.body, "Idempotency-Key", "k-"+strings.ReplaceAll(name, " ", "-"))
		if (code == 200) != c.ok {
			t.Errorf("%s: %d %s", name, code, answer)
		}
		if strings.Contains(answer, canary) {
			t.Errorf("%s is answered with it: %d %s", name, code, answer)
		}
	}
	// Numbers, which a lenient decoder would quote.
	if _, answer := send("PUT", rest, "application/json", `{"value":8675309001}`); strings.Contains(answer, "8675309001") {
		t.Errorf("a number: %s", answer)
	}
	if _, answer := send("PUT", rest, "application/json", `{"vlue":"x"}`); !strings.Contains(answer, `did you mean \"value\"?`) {
		t.Errorf("a mistyped field: %s", answer)
	}
	for _, path := range []string{"/v1/secrets", "/v1/bindings", "/v1/audit/entries", "/metrics"} {
		if _, answer := send("GET", path, "", ""); strings.Contains(answer, canary) {
			t.Errorf("%s: %s", path, answer)
		}
	}
	r.fresh()
	if log := r.said.String(); strings.Contains(log, canary) || !strings.Contains(log, "SetSecret") {
		t.Errorf("the log: %.2000s", log)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(canary)))
	err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, s := range []string{canary, "8675309001", sum} {
			if at := bytes.Index(b, []byte(s)); at >= 0 {
				t.Errorf("%s holds %q", path, b[max(0, at-40):min(len(b), at+40)])
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
