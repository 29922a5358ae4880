package server

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxFormFiles is how many files one form may hold.
const maxFormFiles = 10_000

// post stores the files of a form, each under the whole file name that its part
// gives, or a single one under path. Each is stored whole or not at all, in
// order, as it comes; the first that fails ends it.
func (f *files) post(x *exchange) error {
	req := &v1.WriteFileRequest{}
	if err := f.writeRequest(x, req); err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return &httpError{invalidf("the body is no form").WithHint("send multipart/form-data (curl -F), or the content itself with PUT"), http.StatusUnsupportedMediaType}
	}
	in, err := plain(x)
	if err != nil {
		return err
	}
	single := req.Path
	form := multipart.NewReader(in, params["boundary"])
	res := &v1.ListFilesResponse{}
	for {
		p, err := form.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			return stored(res, formError(err))
		}
		name, ok := fileName(p.Header.Get("Content-Disposition"))
		switch {
		case !ok:
			continue // a field without a file
		case single != "" && len(res.Files) > 0:
			return stored(res, invalidf("path names one file, and the form has more").WithHint("leave path out: the parts' file names are the paths"))
		case len(res.Files) >= maxFormFiles:
			return stored(res, sandbox.Errorf(x.op.name, sandbox.KindTooLarge, "the form has more than %d files", maxFormFiles))
		case single == "":
			req.Path = name
		}
		if req.Path == "" {
			return stored(res, invalidf("a part has neither a file name nor is path given"))
		}
		err = f.g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
			info, err := f.api.WriteFile(ctx, req, formPart{p})
			if err == nil {
				res.Files = append(res.Files, info)
			}
			return err
		})
		if err != nil {
			return stored(res, err)
		}
	}
	if len(res.Files) == 0 {
		return invalidf("the form holds no file").WithHint("curl -F 'file=@data.csv;filename=dir/data.csv' …")
	}
	return x.answer(res)
}

// writeRequest reads what a request to store files says beside the content.
func (f *files) writeRequest(x *exchange, req *v1.WriteFileRequest) error {
	if err := decodeQuery(x.r.URL.RawQuery, req.ProtoReflect()); err != nil {
		return err
	}
	if err := bindPath(req.ProtoReflect(), x.route.params, x.values); err != nil {
		return err
	}
	if len(req.Data) > 0 {
		return invalidf("the content goes into the body, not into data")
	}
	return nil
}

// stored adds to err how far it went.
func stored(res *v1.ListFilesResponse, err error) error {
	var he *httpError
	var e *sandbox.Error
	if n := len(res.Files); n > 0 && !errors.As(err, &he) && errors.As(err, &e) {
		told := *e
		told.Hint = strings.TrimPrefix(told.Hint+"; ", "; ") + "the files before it are stored, the last is " + valid(res.Files[n-1].Path)
		return &told
	}
	return err
}

// fileName is the file name of a part as it was sent, directories included.
func fileName(disposition string) (string, bool) {
	_, params, err := mime.ParseMediaType(disposition)
	name, ok := params["filename"]
	return name, err == nil && ok
}

// formPart is a file in a form; damage of the form is the caller's error.
type formPart struct{ r io.Reader }

// Read implements io.Reader.
func (p formPart) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if err != nil && err != io.EOF {
		err = formError(err)
	}
	return n, err
}

func formError(err error) error {
	var he *httpError
	var e *sandbox.Error
	if errors.As(err, &he) || errors.As(err, &e) {
		return err
	}
	return invalidf("the form is damaged or incomplete")
}

// plain is the body without its encoding. It is decoded as it is read, so what a
// small body becomes is bounded by where it goes: the sandbox's disk.
func plain(x *exchange) (io.Reader, error) {
	switch e := strings.ToLower(x.r.Header.Get("Content-Encoding")); e {
	case "", "identity":
		return x.r.Body, nil
	case "gzip":
		return &unzipped{body: x.r.Body}, nil
	default:
		return nil, &httpError{invalidf("content encoding %q is not understood", valid(e)).WithHint("send the content as it is, or gzip"), http.StatusUnsupportedMediaType}
	}
}

// unzipped reads a body that is packed.
type unzipped struct {
	body io.Reader
	z    *gzip.Reader
}

// Read implements io.Reader.
func (u *unzipped) Read(p []byte) (n int, err error) {
	if u.z == nil {
		u.z, err = gzip.NewReader(u.body)
	}
	if err == nil {
		n, err = u.z.Read(p)
	}
	var he *httpError
	switch {
	case err == nil || err == io.EOF && u.z != nil || errors.As(err, &he):
		return n, err
	}
	return n, invalidf("the body is no valid gzip").WithHint("leave Content-Encoding out for content that is stored as it is")
}

// packed says whether the caller takes gzip.
func packed(h http.Header) bool {
	for _, part := range strings.Split(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		coding, q, _ := strings.Cut(strings.ReplaceAll(strings.ToLower(part), " ", ""), ";")
		if coding == "gzip" {
			return q == "" || strings.Trim(strings.TrimPrefix(q, "q="), "0.") != ""
		}
	}
	return false
}
