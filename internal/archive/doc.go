// Package archive reads and writes a directory as a tar stream between parties
// that do not trust each other, in constant memory.
//
//	r := archive.NewReader(body)
//	for {
//		e, err := r.Next() // io.EOF at the end
//		...                // r reads the content of a file
//	}
//
//	w := archive.NewWriter(out)
//	err := w.Add(archive.Entry{Path: "a/b", Mode: 0o644, Size: 3}, strings.NewReader("abc"))
//	err = w.Close()
//
// An archive holds files, directories and symbolic links, by clean relative paths.
// A link is relative and leads to something in the tree, whoever unpacks it and in
// whatever order. Everything else, owners and set-id bits among it, does not
// travel. A Reader refuses what breaks these rules; who writes asks Refused and
// RefusedLink first, and leaves out what has a reason.
package archive
