package vmimage

import (
	"crypto/sha256"
	"io"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// The parts of ext4 that are used: no journal, because nothing on the disk
// outlives the machine; no backups of the superblock; extents.
const (
	groupBlocks  = 8 * block // what one block of bits counts
	diskInode    = 256
	perInode     = 16 << 10 // bytes of disk for each inode
	descSize     = 32
	rootInode    = 2
	lostInode    = 11
	firstInode   = 11
	ext4Magic    = 0xEF53
	compat       = 0x8 | 0x200       // extended attributes, sparse_super2
	incompat     = 0x2 | 0x40        // types in directories, extents
	roCompat     = 0x2 | 0x20 | 0x40 // large files, many subdirectories, large inodes
	extentsFlag  = 0x80000
	extentsMagic = 0xF30A
)

// MaxDisk is the largest disk WriteDisk makes.
const MaxDisk = 4 << 40

// UUID derives a file system's identity from a name.
func UUID(name string) (u [16]byte) {
	sum := sha256.Sum256([]byte("firebreak disk " + name))
	copy(u[:], sum[:])
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}

// disk is the geometry of a file system.
type disk struct {
	blocks    int64
	groups    int64
	perGroup  int64 // inodes
	table     int64 // blocks of inodes, per group
	descs     int64 // blocks of group descriptors
	usedTotal int64
}

// geometry divides size bytes. A last group too small to be of use is dropped.
func geometry(size int64) disk {
	d := disk{blocks: size / block}
	d.groups = (d.blocks + groupBlocks - 1) / groupBlocks
	each := min(d.blocks, groupBlocks)
	d.perGroup = min(max(each*block/perInode, 32), 8*block)
	d.perGroup = (d.perGroup + 15) / 16 * 16 // whole blocks of inodes
	d.table = d.perGroup * diskInode / block
	if d.groups > 1 {
		if rest := d.blocks - (d.groups-1)*groupBlocks; rest < d.table+64 {
			d.groups--
			d.blocks = d.groups * groupBlocks
		}
	}
	d.descs = (d.groups*descSize + block - 1) / block
	return d
}

// begin is the first block of a group's bitmaps and table.
func (d disk) begin(g int64) int64 {
	if g == 0 {
		return 1 + d.descs
	}
	return g * groupBlocks
}

// used is how many blocks at a group's beginning are taken.
func (d disk) used(g int64) int64 {
	n := d.begin(g) - g*groupBlocks + 2 + d.table
	if g == 0 {
		n += 2 // the root directory and lost+found
	}
	return n
}

func (d disk) size(g int64) int64 { return min(groupBlocks, d.blocks-g*groupBlocks) }

// DiskSize is that of the file WriteDisk writes: size in whole blocks.
func DiskSize(size int64) int64 { return geometry(size).blocks * block }

// WriteDisk makes f, which is empty, an ext4 file system of at most size bytes
// with an empty root directory. It writes little more than the bitmaps: the file
// is sparse, of DiskSize.
//
// Errors: KindUnsupported beyond MaxDisk.
func WriteDisk(f interface {
	io.WriterAt
	Truncate(int64) error
}, size int64, uuid [16]byte) error {
	if size > MaxDisk {
		return sandbox.Errorf("disk", sandbox.KindUnsupported, "a disk of %s is more than %s", sandbox.FormatSize(size), sandbox.FormatSize(MaxDisk))
	}
	d := geometry(size)
	if err := f.Truncate(DiskSize(size)); err != nil {
		return err
	}
	descs := make([]byte, d.descs*block)
	free := int64(0)
	for g := range d.groups {
		e := descs[g*descSize:]
		left := d.size(g) - d.used(g)
		free += left
		inodes, dirs := d.perGroup, int64(0)
		if g == 0 {
			inodes, dirs = inodes-firstInode, 2
		}
		le.PutUint32(e[0:], uint32(d.begin(g)))
		le.PutUint32(e[4:], uint32(d.begin(g)+1))
		le.PutUint32(e[8:], uint32(d.begin(g)+2))
		le.PutUint16(e[12:], uint16(left))
		le.PutUint16(e[14:], uint16(inodes))
		le.PutUint16(e[16:], uint16(dirs))
		if _, err := f.WriteAt(d.bitmaps(g), d.begin(g)*block); err != nil {
			return err
		}
	}
	super := make([]byte, block)
	d.superblock(super[1024:], free, uuid)
	if _, err := f.WriteAt(append(super, descs...), 0); err != nil {
		return err
	}
	return d.directories(f)
}

// bitmaps are a group's two blocks of bits.
func (d disk) bitmaps(g int64) []byte {
	b := make([]byte, 2*block)
	mark := func(bits []byte, from, to int64) {
		for i := from; i < to; i++ {
			bits[i/8] |= 1 << (i % 8)
		}
	}
	mark(b[:block], 0, d.used(g))
	mark(b[:block], d.size(g), groupBlocks) // what is not there
	if g == 0 {
		mark(b[block:], 0, firstInode)
	}
	mark(b[block:], d.perGroup, 8*block)
	return b
}

func (d disk) superblock(s []byte, free int64, uuid [16]byte) {
	put := func(at int, v int64) { le.PutUint32(s[at:], uint32(v)) }
	put(0, d.perGroup*d.groups)
	put(4, d.blocks)
	put(12, free)
	put(16, d.perGroup*d.groups-firstInode)
	put(24, 2) // blocks of 1024<<2
	put(28, 2)
	put(32, groupBlocks)
	put(36, groupBlocks)
	put(40, d.perGroup)
	le.PutUint16(s[54:], 0xffff) // mounts before a check: never
	le.PutUint16(s[56:], ext4Magic)
	le.PutUint16(s[58:], 1) // clean
	le.PutUint16(s[60:], 2) // read-only after an error
	put(76, 1)              // revision with the fields below
	put(84, firstInode)
	le.PutUint16(s[88:], diskInode)
	put(92, compat)
	put(96, incompat)
	put(100, roCompat)
	copy(s[104:120], uuid[:])
	le.PutUint16(s[348:], 32) // extra size of inodes, at least
	le.PutUint16(s[350:], 32) // and as a rule
}

// directories writes the root and lost+found, which checkers ask for.
func (d disk) directories(f io.WriterAt) error {
	first := d.begin(0) + 2 + d.table
	table := (d.begin(0) + 2) * block
	root, lost := make([]byte, block), make([]byte, block)
	at := dirent(root, 0, rootInode, ".", 12)
	at = dirent(root, at, rootInode, "..", 12)
	dirent(root, at, lostInode, "lost+found", block-at)
	at = dirent(lost, 0, lostInode, ".", 12)
	dirent(lost, at, rootInode, "..", block-at)
	for _, w := range []struct {
		b  []byte
		at int64
	}{
		{root, first * block}, {lost, (first + 1) * block},
		{directoryInode(0o755, 3, first), table + (rootInode-1)*diskInode},
		{directoryInode(0o700, 2, first+1), table + (lostInode-1)*diskInode},
	} {
		if _, err := f.WriteAt(w.b, w.at); err != nil {
			return err
		}
	}
	return nil
}

func dirent(b []byte, at int, ino uint32, name string, length int) int {
	le.PutUint32(b[at:], ino)
	le.PutUint16(b[at+4:], uint16(length))
	b[at+6], b[at+7] = byte(len(name)), kindDir
	copy(b[at+8:], name)
	return at + length
}

func directoryInode(mode uint16, links uint16, at int64) []byte {
	b := make([]byte, diskInode)
	le.PutUint16(b[0:], 0o040000|mode)
	le.PutUint32(b[4:], block)
	le.PutUint16(b[26:], links)
	le.PutUint32(b[28:], block/512)
	le.PutUint32(b[32:], extentsFlag)
	e := b[40:]
	le.PutUint16(e[0:], extentsMagic)
	le.PutUint16(e[2:], 1)
	le.PutUint16(e[4:], 4)
	le.PutUint16(e[16:], 1) // one block
	le.PutUint32(e[20:], uint32(at))
	le.PutUint16(b[128:], 32)
	return b
}
