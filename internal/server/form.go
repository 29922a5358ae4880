package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/filebody"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// post stores the files of a form, each under the whole file name that its part
// gives, or a single one under path. Each is stored whole or not at all, in
// order, as it comes; the first that fails ends it.
func (f *files) post(x *exchange) error {
	req := &v1.WriteFileRequest{}
	if err := f.writeRequest(x, req); err != nil {
		return err
	}
	in, err := plain(x)
	if err != nil {
		return err
	}
	form, ok := filebody.ParseForm(x.r.Header, in)
	if !ok {
		return &httpError{invalidf("the body is no form").WithHint("send multipart/form-data (curl -F), or the content itself with PUT"), http.StatusUnsupportedMediaType}
	}
	single := req.Path
	res := &v1.ListFilesResponse{}
	for {
		p, err := form.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return stored(res, err)
		}
		switch {
		case !p.File:
			continue // a field without a file
		case single != "" && len(res.Files) > 0:
			return stored(res, invalidf("path names one file, and the form has more").WithHint("leave path out: the parts' file names are the paths"))
		case single == "":
			req.Path = p.Name
		}
		if req.Path == "" {
			return stored(res, invalidf("a part has neither a file name nor is path given"))
		}
		err = f.g.guard(x.r.Context(), x.op, req, func(ctx context.Context) error {
			info, err := f.api.WriteFile(ctx, req, p)
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

// plain is the body without its encoding.
func plain(x *exchange) (io.Reader, error) {
	in, err := filebody.Plain(x.r.Header, x.r.Body)
	var e *sandbox.Error
	if errors.As(err, &e) {
		err = &httpError{e, http.StatusUnsupportedMediaType}
	}
	return in, err
}
