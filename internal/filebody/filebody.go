// Package filebody is the HTTP body of a file: a content that may be packed, or one
// of several in a form, on its way in, and what makes a browser save it on its way
// out. Nothing is held: what is read is read as it comes.
//
//	in, err := filebody.Plain(r.Header, r.Body)       // without gzip
//	form, ok := filebody.ParseForm(r.Header, in)      // if it is one
//	p, err := form.Next()                             // io.EOF at the end
//
//	filebody.Save(w.Header(), "plot.png", modified)
//
// Errors of the reader below come out as they are; everything else that is wrong
// with a body is KindInvalid, its sender's.
package filebody

import (
	"compress/gzip"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// MaxFiles is how many files one form may hold.
const MaxFiles = 10_000

// source remembers an error of the body itself, which is not one of its content.
type source struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// settle is err, which came of reading: the body's own, the end, or the content's.
func (s *source) settle(err error, bad func() error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case s.err != nil:
		return s.err
	}
	return bad()
}

// Plain is a body without its encoding, identity or gzip. It is decoded as it is
// read, so what a small body becomes is bounded by where it goes.
//
// Errors: KindInvalid for another encoding.
func Plain(h http.Header, body io.Reader) (io.Reader, error) {
	switch e := strings.ToLower(h.Get("Content-Encoding")); e {
	case "", "identity":
		return body, nil
	case "gzip":
		return &unzipped{body: source{r: body}}, nil
	default:
		return nil, sandbox.Errorf("request", sandbox.KindInvalid, "content encoding %.40q is not understood", strings.ToValidUTF8(e, "?")).
			WithHint("send the content as it is, or gzip")
	}
}

// unzipped reads a body that is packed.
type unzipped struct {
	body source
	z    *gzip.Reader
}

// Read implements io.Reader.
func (u *unzipped) Read(p []byte) (n int, err error) {
	if u.z == nil {
		if u.z, err = gzip.NewReader(&u.body); err == io.EOF { // an empty body is none
			err = io.ErrUnexpectedEOF
		}
	}
	if err == nil {
		n, err = u.z.Read(p)
	}
	return n, u.body.settle(err, func() error {
		return sandbox.Errorf("request", sandbox.KindInvalid, "the body is no valid gzip").
			WithHint("leave Content-Encoding out for content that is stored as it is")
	})
}

// Form is a body of several files.
type Form struct {
	body  source
	parts *multipart.Reader
	files int
}

// ParseForm returns the form that a body is, if h says so.
func ParseForm(h http.Header, body io.Reader) (*Form, bool) {
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return nil, false
	}
	f := &Form{body: source{r: body}}
	// The library takes a body that ends among the headers of a part for its end. The
	// true end is a line of its own, with or without a line's end.
	whole := io.MultiReader(&f.body, strings.NewReader("\r\n"), cut{})
	f.parts = multipart.NewReader(whole, params["boundary"])
	return f, true
}

// cut is what nobody reads who has found the end.
type cut struct{}

// Read implements io.Reader.
func (cut) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// Part is a part of a form. It reads its content until the next one is asked for.
type Part struct {
	Field string
	// Name is the file name as it was sent, directories included, which the standard
	// library's takes away. File says that there is one, though it be empty.
	Name string
	File bool

	form *Form
	r    io.Reader
}

// Read implements io.Reader.
func (p *Part) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	return n, p.form.body.settle(err, damaged)
}

// Next returns the next part, and io.EOF after the last. Errors: KindTooLarge beyond
// MaxFiles, KindInvalid for a form that is damaged or ends early.
func (f *Form) Next() (*Part, error) {
	p, err := f.parts.NextRawPart()
	if err != nil {
		return nil, f.body.settle(err, damaged)
	}
	part := &Part{Field: p.FormName(), form: f, r: p}
	if _, params, err := mime.ParseMediaType(p.Header.Get("Content-Disposition")); err == nil {
		part.Name, part.File = params["filename"]
	}
	if part.File {
		if f.files++; f.files > MaxFiles {
			return nil, sandbox.Errorf("request", sandbox.KindTooLarge, "the form has more than %d files", MaxFiles)
		}
	}
	return part, nil
}

func damaged() error {
	return sandbox.Errorf("request", sandbox.KindInvalid, "the form is damaged or incomplete")
}

// Packed says whether the caller takes gzip.
func Packed(h http.Header) bool {
	for _, part := range strings.Split(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		coding, q, _ := strings.Cut(strings.ReplaceAll(strings.ToLower(part), " ", ""), ";")
		if coding == "gzip" {
			return q == "" || strings.Trim(strings.TrimPrefix(q, "q="), "0.") != ""
		}
	}
	return false
}

// Save makes a browser save the body that follows under name, and never interpret
// it: guests choose names and bytes. A zero time is not known.
func Save(h http.Header, name string, modified time.Time) {
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Disposition", disposition(name))
	if !modified.IsZero() {
		h.Set("Last-Modified", modified.UTC().Format(http.TimeFormat))
	}
}

// disposition names a download.
func disposition(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || strings.ContainsRune(`/\"`, r) {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(name[:min(len(name), 255)], "_"))
	if d := mime.FormatMediaType("attachment", map[string]string{"filename": name}); d != "" {
		return d
	}
	return "attachment"
}
