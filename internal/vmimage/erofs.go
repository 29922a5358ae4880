package vmimage

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
)

// The parts of EROFS that are used, as the kernel's fs/erofs/erofs_fs.h has
// them: extended inodes without attributes, data uncompressed, the last and
// incomplete block of each behind its inode ("inline") where it fits.
const (
	block         = 4096
	erofsMagic    = 0xE0F5E1E2
	erofsSuper    = 1024
	inodeSize     = 64
	slot          = 32 // inodes begin at multiples; a nid counts them
	direntSize    = 12
	layoutPlain   = 0
	layoutInline  = 2
	extendedInode = 1
	metaBlock     = 1 // where metadata begins
)

var le = binary.LittleEndian

// WriteRoot writes the tree as an EROFS image. The files must not change
// meanwhile: one that grows or shrinks is an error.
//
// Extended attributes are left out. The only ones that could matter, file
// capabilities, have no effect on programs that cannot gain privileges.
//
// Errors: KindTooLarge beyond Tree.MaxBytes. Cost: every file is read once.
func WriteRoot(w io.Writer, t Tree) error {
	c, err := collect(t)
	if err != nil {
		return err
	}
	blocks, err := c.layOut()
	if err != nil {
		return err
	}
	out := &image{w: bufio.NewWriterSize(w, 1<<20)}
	out.superblock(c, blocks)
	if err := out.metadata(c); err != nil {
		return err
	}
	for _, n := range c.all {
		if err := out.data(n); err != nil {
			return err
		}
	}
	return out.w.Flush()
}

// tail is what of the content lies behind the inode. Content of which nothing
// does is plain.
func (n *node) tail() int64 {
	if t := n.size % block; t <= block-inodeSize {
		return t
	}
	return 0
}

// full is how many blocks the rest of the content takes.
func (n *node) full() int64 { return (n.size - n.tail() + block - 1) / block }

// layOut decides where everything is and returns the size in blocks.
func (c *collector) layOut() (uint32, error) {
	at := int64(slot) // number 0 is nobody's
	for _, n := range c.all {
		need := inodeSize + n.tail()
		if at%block+need > block {
			at = (at/block + 1) * block
		}
		n.at = at
		at = (at + need + slot - 1) / slot * slot
	}
	next := metaBlock + (at+block-1)/block
	for _, n := range c.all {
		n.block = uint32(next)
		next += n.full()
		if next >= 1<<32 {
			return 0, fmt.Errorf("image: more than %d blocks", uint32(1<<32-1))
		}
	}
	return uint32(next), nil
}

// image writes from the beginning to the end.
type image struct {
	w  *bufio.Writer
	at int64
}

func (i *image) write(b []byte) error {
	n, err := i.w.Write(b)
	i.at += int64(n)
	return err
}

// seek writes zeros up to an offset.
func (i *image) seek(to int64) error {
	for i.at < to {
		if err := i.write(zeros[:min(block, to-i.at)]); err != nil {
			return err
		}
	}
	return nil
}

var zeros [block]byte

func (i *image) superblock(c *collector, blocks uint32) {
	var b [block]byte
	s := b[erofsSuper:]
	le.PutUint32(s[0:], erofsMagic)
	s[12] = 12                                     // block size, as a power of two
	le.PutUint16(s[14:], uint16(c.all[0].at/slot)) // root
	le.PutUint64(s[16:], uint64(len(c.all)))
	le.PutUint32(s[36:], blocks)
	le.PutUint32(s[40:], metaBlock)
	_ = i.write(b[:]) // the first write, into the buffer
}

func (i *image) metadata(c *collector) error {
	for _, n := range c.all {
		if err := i.seek(metaBlock*block + n.at); err != nil {
			return err
		}
		if err := i.write(n.encode()); err != nil {
			return err
		}
		if n.tail() == 0 {
			continue
		}
		b, err := n.lastPart()
		if err != nil {
			return err
		}
		if err := i.write(b); err != nil {
			return err
		}
	}
	return i.seek((i.at + block - 1) / block * block)
}

func (n *node) encode() []byte {
	types := map[uint8]uint16{kindFile: 0o100000, kindDir: 0o040000, kindSymlink: 0o120000}
	var b [inodeSize]byte
	format := uint16(extendedInode | layoutPlain<<1)
	if n.tail() > 0 {
		format = extendedInode | layoutInline<<1
	}
	le.PutUint16(b[0:], format)
	le.PutUint16(b[4:], types[n.kind]|n.mode)
	le.PutUint64(b[8:], uint64(n.size))
	le.PutUint32(b[16:], n.block)
	le.PutUint32(b[20:], n.number)
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	le.PutUint64(b[32:], uint64(n.mtime))
	le.PutUint32(b[40:], n.nsec)
	le.PutUint32(b[44:], n.links)
	return b[:]
}

// lastPart is the content behind the inode.
func (n *node) lastPart() ([]byte, error) {
	from := n.size - n.tail()
	switch n.kind {
	case kindSymlink:
		return []byte(n.target)[from:], nil
	case kindDir:
		return encodeDirectory(n.names)[from:], nil
	}
	f, err := os.Open(n.source)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n.tail())
	if _, err := f.ReadAt(b, from); err != nil {
		return nil, changed(n, err)
	}
	return b, nil
}

// data writes the blocks of n that are not behind its inode.
func (i *image) data(n *node) error {
	length := n.size - n.tail()
	if length == 0 {
		return nil
	}
	switch n.kind {
	case kindSymlink:
		if err := i.write([]byte(n.target)[:length]); err != nil {
			return err
		}
	case kindDir:
		if err := i.write(encodeDirectory(n.names)[:length]); err != nil {
			return err
		}
	default:
		if err := i.file(n, length); err != nil {
			return err
		}
	}
	return i.seek((i.at + block - 1) / block * block)
}

func (i *image) file(n *node, length int64) error {
	f, err := os.Open(n.source)
	if err != nil {
		return err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != n.size {
		return changed(n, err)
	}
	copied, err := io.CopyN(i.w, f, length)
	i.at += copied
	if err != nil {
		return changed(n, err)
	}
	return nil
}

func changed(n *node, err error) error {
	return fmt.Errorf("image: %s changed while it was read: %w", n.source, err)
}

// pack divides entries among blocks: each takes a header and its name.
func pack(names []entry) (groups [][]entry, last int64) {
	begin, used := 0, int64(0)
	for k, e := range names {
		need := int64(direntSize + len(e.name))
		if used+need > block {
			groups = append(groups, names[begin:k])
			begin, used = k, 0
		}
		used += need
	}
	return append(groups, names[begin:]), used
}

func directorySize(names []entry) int64 {
	groups, last := pack(names)
	return int64(len(groups)-1)*block + last
}

// encodeDirectory is a directory's content: in each block the headers, then the
// names.
func encodeDirectory(names []entry) []byte {
	groups, last := pack(names)
	out := make([]byte, int64(len(groups)-1)*block+last)
	for k, g := range groups {
		b := out[k*block : min((k+1)*block, len(out))]
		at := len(g) * direntSize
		for j, e := range g {
			h := b[j*direntSize:]
			le.PutUint64(h[0:], uint64(e.to.at/slot))
			le.PutUint16(h[8:], uint16(at))
			h[10] = e.to.kind
			at += copy(b[at:], e.name)
		}
	}
	return out
}
