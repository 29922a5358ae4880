// Command protogen compiles api/proto and writes the generated Go code.
//
//	go -C tools tool protogen -api ../api -out ../api   # what `make generate` runs
//
// It drives protoc-gen-go and protoc-gen-connect-go, at the versions this
// module's go.mod pins, over descriptors compiled in process: no protoc, no
// registry and no network. Output, below -out:
//
//	gen/…              *.pb.go and Connect stubs
//	descriptors.binpb  the FileDescriptorSet of our own files with their
//	                   comments, which the OpenAPI document is made from; not
//	                   with -descriptors=false
//
// The output is a function of the input alone: api/drift_test.go generates into
// a temporary directory and compares.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("protogen: ")
	api := flag.String("api", "../api", "directory that holds proto/ and third_party/")
	out := flag.String("out", "../api", "directory to write gen/ and descriptors.binpb into")
	descriptors := flag.Bool("descriptors", true, "write descriptors.binpb, too")
	flag.Parse()
	if err := generate(context.Background(), *api, *out, *descriptors); err != nil {
		log.Fatal(err)
	}
}

// plugin is one protoc plugin, run as `go tool <name>`.
type plugin struct{ name, parameter string }

var plugins = []plugin{
	{"protoc-gen-go", "paths=source_relative"},
	{"protoc-gen-connect-go", "paths=source_relative"},
}

func generate(ctx context.Context, api, out string, descriptors bool) error {
	root := filepath.Join(api, "proto")
	names, err := protoFiles(root)
	if err != nil {
		return err
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			ImportPaths: []string{root, filepath.Join(api, "third_party")},
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return err
	}
	gen := filepath.Join(out, "gen")
	if err := removeGenerated(gen); err != nil {
		return err
	}
	request := closure(files)
	for _, p := range plugins {
		if err := run(ctx, p, names, request, gen); err != nil {
			return err
		}
	}
	if !descriptors {
		return nil
	}
	return writeDescriptors(files, filepath.Join(out, "descriptors.binpb"))
}

// protoFiles lists the .proto files below root, sorted, as import paths.
func protoFiles(root string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".proto" {
			return err
		}
		rel, err := filepath.Rel(root, path)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	sort.Strings(names)
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("no .proto files below %s", root)
	}
	return names, err
}

// removeGenerated deletes Go files of an earlier run, so that a message that
// moved does not stay behind. Directories and other files are left alone.
func removeGenerated(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil
		case err != nil || d.IsDir():
			return err
		case strings.HasSuffix(path, ".pb.go") || strings.HasSuffix(path, ".connect.go"):
			return os.Remove(path)
		}
		return nil
	})
}

// closure returns files and everything they import, dependencies first, which
// is the order plugins demand.
func closure(files linker.Files) []*descriptorpb.FileDescriptorProto {
	var list []*descriptorpb.FileDescriptorProto
	seen := map[string]bool{}
	var add func(f protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		list = append(list, toProto(f))
	}
	for _, f := range files {
		add(f)
	}
	return list
}

func toProto(f protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	return protodesc.ToFileDescriptorProto(f)
}

// run hands the descriptors to p and writes what it answers below dir.
func run(ctx context.Context, p plugin, names []string, files []*descriptorpb.FileDescriptorProto, dir string) error {
	in, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: names,
		Parameter:      proto.String(p.parameter),
		ProtoFile:      files,
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "tool", p.name)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	answer, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(answer, &response); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	if response.Error != nil {
		return fmt.Errorf("%s: %s", p.name, response.GetError())
	}
	for _, f := range response.File {
		path := filepath.Join(dir, filepath.FromSlash(f.GetName()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(f.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeDescriptors stores our own files with comments. Positions are dropped:
// only the comments matter, and a moved line must not change the output.
func writeDescriptors(files linker.Files, path string) error {
	set := &descriptorpb.FileDescriptorSet{}
	for _, f := range files {
		fd := toProto(f)
		var kept []*descriptorpb.SourceCodeInfo_Location
		for _, l := range fd.GetSourceCodeInfo().GetLocation() {
			if l.LeadingComments == nil {
				continue
			}
			kept = append(kept, &descriptorpb.SourceCodeInfo_Location{
				Path: l.Path, Span: []int32{0, 0, 0}, LeadingComments: l.LeadingComments,
			})
		}
		fd.SourceCodeInfo = &descriptorpb.SourceCodeInfo{Location: kept}
		set.File = append(set.File, fd)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
