// Package template turns names into root file systems.
//
// A template is what a sandbox starts from: a read-only directory tree with
// every mount point in place, the languages it can run, and a digest.
//
//	s, err := template.New(filepath.Join(data, "templates"), log)
//	t, err := s.Resolve(ctx, "host")             // or "python", a name, "sha256:…"
//	release, err := s.Acquire(t.Digest)          // nobody removes it until release
//	inst, err := backend.Create(ctx, sandbox.Spec{Root: t.Root, …})
//
// There are three kinds.
//
// "host" is a curated view of the machine's own programs: the directories
// below /usr that packages fill (and /bin, /sbin, /lib* where they are not
// links), bound read-only over a small synthetic tree. Never /usr/local, a home
// directory or the machine's /etc. It needs no download and no build. Since a
// package upgrade changes it under us, its Root is marked Mutable and its digest
// is a fingerprint; fingerprint_linux.go says what that covers.
//
// A pack ("python", "node", "shell") is built once from Debian packages:
//
//	t, err := s.Build(ctx, "python", template.BuildOptions{})
//
// Its digest is the SHA-256 of a listing of everything in it, so the same
// packages give the same digest whenever and wherever they are built as root.
// Recipes are in the repository's images directory.
//
// An image or archive, which a stranger made, is fetched, checked and unpacked:
//
//	t, err := s.Build(ctx, "", template.BuildOptions{Image: "docker.io/library/alpine:3.22"})
//
// Its digest also covers what the image says about running it. docs/adr/0012
// says what is taken over and what is not.
//
// # On disk
//
//	templates/
//	  .lock                 held for moments: names, new temporaries, sweeping
//	  names/python          the digest and, of an image, the reference it was built by
//	  sha256-<hex>/
//	    rootfs/             the tree; never written again
//	    manifest.json       what Resolve reads; carries its own digest
//	    listing             what the digest is the digest of
//	    lock                flock: shared by users, exclusive to Remove
//	  tmp-<random>/         a build, upload or removal under way; its lock is held
//	  blobs/sha256-<hex>    a fetched layer; flock: shared by readers
//	  blobs/get-<hex>       one being fetched; its lock is held
//
// Everything appears by rename. A crash leaves tmp-… behind, which the next New
// removes, but not one whose lock another live process holds. Several
// processes may share a directory.
//
// # As an ordinary user
//
// Everything works without root. Packs then need unprivileged user namespaces
// and a range of subordinate uids. A file's owner counts as root when it is
// whoever owns the store. The home directory cannot be given to uid 1000 and is
// made writable to all instead, since every sandbox writes to a layer of its
// own; that is why such a build has another digest than root's.
package template
