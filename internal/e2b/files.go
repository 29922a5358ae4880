package e2b

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"io"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/filebody"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// written is a file that was stored.
type written struct {
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Path     string            `json:"path"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// metadataHeader is what the names of headers begin with that are kept beside the
// files of an upload, in lower case; of several of one name the first counts.
const metadataHeader = "X-Metadata-"

func metadata(h http.Header) map[string]string {
	var out map[string]string
	for name, values := range h {
		if key, ok := strings.CutPrefix(name, metadataHeader); ok && len(values) > 0 {
			if out == nil {
				out = map[string]string{}
			}
			out[strings.ToLower(key)] = values[0]
		}
	}
	return out
}

// fileUser is who a request for /files acts as.
func fileUser(r *http.Request) string {
	if user := r.URL.Query().Get("username"); user != "" {
		return user
	}
	return visitOf(r.Context()).user
}

// download sends a file, to be saved.
func (s *Server) download(w http.ResponseWriter, r *http.Request) {
	ctx, v := r.Context(), visitOf(r.Context())
	req := &v1.ReadFileRequest{Id: v.id, Path: file(r.URL.Query().Get("path")), User: fileUser(r)}
	if err := s.rules.Check(req); err != nil {
		s.fail(w, r, err)
		return
	}
	body, info, err := s.api.OpenFile(ctx, req.GetId(), req.GetPath(), req.GetUser(), 0, 0)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer body.Close()
	var modified time.Time
	if info.GetModifiedAt().IsValid() {
		modified = info.GetModifiedAt().AsTime()
	}
	filebody.Save(w.Header(), info.GetName(), modified)
	size := info.GetSize()
	if size > 0 { // 0 may mean that it is not known (/proc)
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		n, err := io.Copy(w, io.LimitReader(body, size))
		if err != nil || n < size { // nothing else tells that this is not all
			panic(http.ErrAbortHandler)
		}
		return
	}
	if _, err := io.Copy(w, body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// upload stores the body as a file or, of a form, each file in it.
func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	body, err := filebody.Plain(r.Header, r.Body)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	out := []written{}
	form, isForm := filebody.ParseForm(r.Header, body)
	kind, _, unnamed := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch target := r.URL.Query().Get("path"); {
	case isForm:
		out, err = s.storeForm(r, form, target)
	case unnamed == nil && kind != "application/octet-stream":
		err = invalid("content type %.100q is not understood", kind).WithHint("multipart/form-data or application/octet-stream")
	default:
		var one written
		one, err = s.store(r, target, body)
		out = append(out, one)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer(w, http.StatusOK, out)
}

// storeForm stores the files of a form. The name of each is its path, unless the
// request names one.
func (s *Server) storeForm(r *http.Request, form *filebody.Form, target string) ([]written, error) {
	out := []written{}
	for {
		part, err := form.Next()
		if err == io.EOF {
			if len(out) == 0 {
				return nil, invalid("the form holds no file").WithHint("a field called file, with a file name")
			}
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if part.Field != "file" {
			continue
		}
		name := target
		switch {
		case name == "":
			name = part.Name
		case len(out) > 0:
			return nil, invalid("path names one file, the form holds several").WithHint("leave path out, and give each file its path as its name")
		}
		one, err := s.store(r, name, part)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
}

func (s *Server) store(r *http.Request, name string, body io.Reader) (written, error) {
	req := &v1.WriteFileRequest{Id: visitOf(r.Context()).id, Path: homeless(name), User: fileUser(r), Metadata: metadata(r.Header)}
	if err := s.rules.Check(req); err != nil {
		return written{}, err
	}
	if req.GetPath() == "" {
		return written{}, invalid("the file has no path")
	}
	info, err := s.api.WriteFile(r.Context(), req, body)
	if err != nil {
		return written{}, err
	}
	return written{Name: path.Base(info.GetPath()), Type: "file", Path: info.GetPath(), Metadata: info.GetMetadata()}, nil
}

// serveSigned answers a request for /files that a signature allows: one file, one
// direction, one user, perhaps for a time. The URL may not name the sandbox (id is
// empty then): it is the one whose token made the signature.
func (s *Server) serveSigned(w http.ResponseWriter, r *http.Request, id string) {
	q := r.URL.Query()
	operation := "read"
	if r.Method == http.MethodPost {
		operation = "write"
	}
	text := []string{q.Get("path"), operation, q.Get("username")}
	until := q.Get("signature_expiration")
	if until != "" {
		at, err := strconv.ParseInt(until, 10, 64)
		if err != nil || !time.Now().Before(time.Unix(at, 0)) {
			s.fail(w, r, s.door.Unknown(r.Context(), sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "the signature's time is over").
				WithHint("sign again")))
			return
		}
	}
	given := []byte(q.Get("signature"))
	match := func(token string) bool {
		signed := strings.Join(append(text, token), ":")
		if until != "" {
			signed += ":" + until
		}
		sum := sha256.Sum256([]byte(signed))
		return subtle.ConstantTimeCompare(given, []byte("v1_"+base64.RawStdEncoding.EncodeToString(sum[:]))) == 1
	}
	found, p, err := s.api.HolderBy(r.Context(), auth.UseInside, match)
	if err == nil && id != "" && found != id {
		err = sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "the signature is not this sandbox's")
	}
	if err != nil {
		s.fail(w, r, s.door.Unknown(r.Context(), err))
		return
	}
	s.enter(w, r, target{found, portInside}, p)
}
