// Package api holds the one definition of Firebreak's wire.
//
// proto/ is written by people; everything else follows from it by
// `make generate`: Go messages and Connect stubs in gen/, the descriptors with
// their comments, and openapi.json. Go programs import
// api/gen/firebreak/v1 and, to call a server, the client package.
package api

import _ "embed"

// Descriptors is a serialised google.protobuf.FileDescriptorSet of our own
// files, without their imports but with their leading comments.
//
//go:embed descriptors.binpb
var Descriptors []byte

// OpenAPI is the OpenAPI 3.1 document of the REST surface, made from the
// descriptors and the server's route table.
//
//go:embed openapi.json
var OpenAPI []byte
