package server

import (
	"context"
	"net/http"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
)

// uploadTemplate is where REST puts archives: the body is the archive.
const uploadTemplate = "/v1/templates/uploads"

// registerUpload registers the one operation of templates with a raw body.
func (g *registry) registerUpload(api API) {
	up := clientStream(g, rpc.SystemServiceUploadArchiveProcedure,
		func(ctx context.Context, receive func() (*v1.UploadArchiveRequest, error)) (*v1.UploadArchiveResponse, error) {
			return api.UploadArchive(ctx, &dataReader[*v1.UploadArchiveRequest]{receive: receive})
		}, created)
	g.rawRoute(up, http.MethodPut, uploadTemplate, func(x *exchange) error {
		switch e := x.r.Header.Get("Content-Encoding"); {
		case x.r.URL.RawQuery != "":
			return invalidf("this takes no parameters")
		case e != "" && e != "identity":
			return invalidf("content encoding %q is not understood", valid(e)).WithHint("send the file as it is; a packed archive is unpacked")
		}
		return g.guard(x.r.Context(), x.op, nil, func(ctx context.Context) error {
			res, err := api.UploadArchive(ctx, x.r.Body)
			if err != nil {
				return err
			}
			return x.answer(res)
		})
	})
}
