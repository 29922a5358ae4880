package e2b

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// idPrefix makes an identifier of a secret's name. No name begins so.
const idPrefix = "sec_"

// secretInfo is what is told of a secret: never its value.
type secretInfo struct {
	SecretID       string            `json:"secretID"`
	Name           string            `json:"name"`
	CurrentVersion int64             `json:"currentVersion"`
	Metadata       map[string]string `json:"metadata"`
	CreatedAt      time.Time         `json:"createdAt"`
	UpdatedAt      time.Time         `json:"updatedAt"`
}

func toSecretInfo(s *v1.Secret) secretInfo {
	return secretInfo{SecretID: idPrefix + s.GetName(), Name: s.GetName(), CurrentVersion: s.GetVersion(), Metadata: map[string]string{},
		CreatedAt: s.GetCreatedAt().AsTime(), UpdatedAt: s.GetUpdatedAt().AsTime()}
}

// secretRoutes are those of secrets.
func (s *Server) secretRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /secrets", s.keyed(s.createSecret))
	mux.HandleFunc("GET /secrets", s.keyed(s.listSecrets))
	mux.HandleFunc("GET /secrets/{secret}", s.keyed(s.secretInfo))
	mux.HandleFunc("POST /secrets/{secret}", s.keyed(s.updateSecret))
	mux.HandleFunc("DELETE /secrets/{secret}", s.keyed(s.removeSecret))
}

// secretValue is the body of a create or an update.
type secretValue struct {
	Name     string            `json:"name"`
	Value    string            `json:"value"`
	Metadata map[string]string `json:"metadata"`
}

// maxSecretBody bounds it: a value of 64 KiB, escaped.
const maxSecretBody = 512 << 10

// readSecret decodes a body that holds a secret: what is wrong with it is not quoted.
func readSecret(w http.ResponseWriter, r *http.Request) (v secretValue, err error) {
	var raw map[string]json.RawMessage
	if err := readUpTo(w, r, &raw, maxSecretBody); err != nil {
		if sandbox.KindOf(err) == sandbox.KindTooLarge {
			return v, err
		}
		return v, invalid("the body is not understood").WithHint("name, value and metadata, in JSON")
	}
	for field, into := range map[string]any{"name": &v.Name, "value": &v.Value, "metadata": &v.Metadata} {
		if text, ok := raw[field]; ok && json.Unmarshal(text, into) != nil {
			return v, invalid("the field %s is not as it should be", field)
		}
		delete(raw, field)
	}
	switch {
	case len(raw) > 0:
		return v, invalid("the body has a field that this server does not know").WithHint("name, value and metadata are known")
	case len(v.Metadata) > 0:
		return v, notYet("metadata of a secret")
	}
	return v, nil
}

// findSecret looks a secret up by its identifier or its name, in small letters as at
// E2B unless there is one as it is spelt. Errors: KindNotFound.
func (s *Server) findSecret(r *http.Request, called string) (*v1.Secret, error) {
	list, err := s.api.ListSecrets(r.Context(), &v1.ListSecretsRequest{})
	if err != nil {
		return nil, err
	}
	called = strings.TrimPrefix(called, idPrefix)
	for _, name := range []string{called, strings.ToLower(called)} {
		if i := slices.IndexFunc(list.GetSecrets(), func(x *v1.Secret) bool { return x.GetName() == name }); i >= 0 {
			return list.GetSecrets()[i], nil
		}
	}
	return nil, sandbox.Errorf("secret", sandbox.KindNotFound, "there is no secret called %.80q", called)
}

// createSecret makes a secret; one that is there stays as it is.
func (s *Server) createSecret(w http.ResponseWriter, r *http.Request) error {
	v, err := readSecret(w, r)
	if err != nil {
		return err
	}
	name := strings.ToLower(v.Name)
	if strings.HasPrefix(name, idPrefix) {
		return invalid("the name %.80q begins like an identifier", v.Name).WithHint("names do not begin with %s", idPrefix)
	}
	s.making.Lock() // two that make it at once: one does
	defer s.making.Unlock()
	switch _, err := s.findSecret(r, name); {
	case err == nil:
		return sandbox.Errorf("secret", sandbox.KindExists, "there is a secret called %.80q", name).WithHint("update it, or choose another name")
	case sandbox.KindOf(err) != sandbox.KindNotFound:
		return err
	}
	kept, err := checked(r.Context(), s, s.api.SetSecret, &v1.SetSecretRequest{Name: name, Value: v.Value})
	if err != nil {
		return err
	}
	answer(w, http.StatusCreated, toSecretInfo(kept))
	return nil
}

// updateSecret gives a secret another value.
func (s *Server) updateSecret(w http.ResponseWriter, r *http.Request) error {
	v, err := readSecret(w, r)
	if err != nil {
		return err
	}
	if v.Name != "" {
		return invalid("a secret is not given another name")
	}
	found, err := s.findSecret(r, r.PathValue("secret"))
	if err != nil {
		return err
	}
	kept, err := checked(r.Context(), s, s.api.SetSecret, &v1.SetSecretRequest{Name: found.GetName(), Value: v.Value})
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, toSecretInfo(kept))
	return nil
}

func (s *Server) secretInfo(w http.ResponseWriter, r *http.Request) error {
	found, err := s.findSecret(r, r.PathValue("secret"))
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, toSecretInfo(found))
	return nil
}

// removeSecret forgets a secret. Errors: KindNotFound; KindConflict while a binding
// uses it.
func (s *Server) removeSecret(w http.ResponseWriter, r *http.Request) error {
	found, err := s.findSecret(r, r.PathValue("secret"))
	if err != nil {
		return err
	}
	if _, err := checked(r.Context(), s, s.api.RemoveSecret, &v1.RemoveSecretRequest{Name: found.GetName()}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// listSecrets answers one page, by name.
func (s *Server) listSecrets(w http.ResponseWriter, r *http.Request) error {
	q, limit := r.URL.Query(), maxPage
	if n := q.Get("limit"); n != "" {
		var err error
		if limit, err = strconv.Atoi(n); err != nil || limit < 1 || limit > maxPage {
			return invalid("limit %.20q is out of range", n).WithHint("from 1 to %d", maxPage)
		}
	}
	list, err := s.api.ListSecrets(r.Context(), &v1.ListSecretsRequest{})
	if err != nil {
		return err
	}
	page := []secretInfo{}
	for _, x := range list.GetSecrets() {
		if x.GetName() <= q.Get("nextToken") {
			continue
		}
		if len(page) == limit {
			w.Header().Set("X-Next-Token", page[limit-1].Name)
			break
		}
		page = append(page, toSecretInfo(x))
	}
	answer(w, http.StatusOK, page)
	return nil
}
