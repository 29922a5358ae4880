// Package vmimage makes what a virtual machine boots, without any tool of the
// host: the root file system as an EROFS image, an empty ext4 for what the guest
// writes, and the initial file system with an agent and the kernel's modules.
//
//	err := vmimage.WriteRoot(f, vmimage.Tree{Dir: root, Mounts: mounts})
//	err := vmimage.WriteDisk(f, 1<<30, vmimage.UUID("inabc…"))
//	mods, err := vmimage.Modules("/lib/modules/6.1.0-57-cloud-amd64", "virtio_blk", "erofs")
//	err := vmimage.WriteInitial(w, files)
//
// The same input makes the same bytes: no clock, no random number and no order
// of a directory gets into an image. Nothing is compressed: all machines of a
// template share one copy in the host's page cache, and a boot need not unpack.
//
// What is written is read by a guest's kernel, never by the host's: no image is
// ever mounted here.
package vmimage
