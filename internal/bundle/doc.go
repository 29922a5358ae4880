// Package bundle carries the two programs a sandbox needs inside bin/firebreak
// and puts them on disk: one file is all there is to copy to a server.
//
//	b, err := bundle.Open(dataDir)
//	b.Runsc    // <dataDir>/libexec/<digest>/runsc
//	b.Runtime  // <dataDir>/libexec/<digest>/: firebreak-guest, python/, node/
//
// `make` leaves the programs compressed in assets/, from where they are
// embedded. A program built without them compiles and works, except that Open
// says so.
//
// Each digest names the embedded content, so versions lie side by side and none
// is ever replaced. Prune removes those that neither a process nor a sandbox
// uses: who opens a Bundle holds a lock on it, and who calls Prune names what
// sandboxes use that outlived their process.
package bundle
