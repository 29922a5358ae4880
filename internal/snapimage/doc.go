// Package snapimage is what a saved sandbox is on disk: a directory of files, and
// a manifest that says what they are of and what they have to be.
//
//	// to save: write files into dir, then
//	snap, err := snapimage.Seal(ctx, dir, snapimage.Manifest{…})
//
//	// to restore
//	img, err := snapimage.Open(snap, 1)  // the manifest is the one that was written
//	err = img.Fits(spec)                 // and is of what is to be made
//	err = img.Built(spec, builds)        // by the same programs
//	err = img.Unpack(ctx, "ram", ram)    // what was read is what was written
//	err = img.Lend(ctx, "memory", path)  // or, for a file of Sparse: to be mapped, read-only
//
// The manifest's digest, which is kept elsewhere, covers everything. A file is read
// once, and measured while it is: what it was unpacked to must not be used before
// Unpack has returned, and need not be looked at again afterwards, whatever happens
// to the file.
//
// Pack leaves out what of a file is zero, which is most of a machine's memory and
// of its disk.
package snapimage
