package template

import (
	"bytes"
	"encoding/binary"
)

// The loader cache as glibc has written it since 2.32 (sysdeps/generic/
// dl-cache.h): a header, entries sorted by name, strings at offsets from the
// header's start. Numbers are in the machine's byte order; the flags byte says
// which.
const (
	cacheMagic  = "glibc-ld.so.cache1.1"
	cacheHeader = 48
	cacheEntry  = 24
	// An entry for one CPU variant refers to an extension we do not keep.
	cacheHwcaps = 1 << 62
)

// filterLoaderCache returns a cache with only the libraries keep approves of,
// or nil if b is none it understands. The names of others (in /usr/local, /opt)
// do not remain in it.
func filterLoaderCache(b []byte, keep func(path string) bool) []byte {
	const bigEndian = 3
	if len(b) < cacheHeader || !bytes.HasPrefix(b, []byte(cacheMagic)) {
		return nil
	}
	if flags := b[28]; flags&3 == bigEndian {
		return nil // no such machine is supported
	}
	le := binary.LittleEndian
	n := int(le.Uint32(b[20:]))
	if n > (len(b)-cacheHeader)/cacheEntry {
		return nil
	}
	type lib struct {
		fixed     [cacheEntry]byte
		key, path string
	}
	var libs []lib
	for i := range n {
		e := b[cacheHeader+i*cacheEntry:][:cacheEntry]
		key, ok1 := cString(b, le.Uint32(e[4:]))
		path, ok2 := cString(b, le.Uint32(e[8:]))
		if !ok1 || !ok2 {
			return nil
		}
		if le.Uint64(e[16:])&cacheHwcaps == 0 && keep(path) {
			libs = append(libs, lib{[cacheEntry]byte(e), key, path})
		}
	}
	out := make([]byte, cacheHeader+len(libs)*cacheEntry)
	copy(out, b[:cacheHeader])
	start := len(out)
	for i, l := range libs {
		e := out[cacheHeader+i*cacheEntry:][:cacheEntry]
		copy(e, l.fixed[:])
		le.PutUint32(e[4:], uint32(len(out)))
		out = append(append(out, l.key...), 0)
		e = out[cacheHeader+i*cacheEntry:][:cacheEntry] // append may have moved it
		le.PutUint32(e[8:], uint32(len(out)))
		out = append(append(out, l.path...), 0)
	}
	le.PutUint32(out[20:], uint32(len(libs)))
	le.PutUint32(out[24:], uint32(len(out)-start))
	le.PutUint32(out[32:], 0) // no extensions
	return out
}

// cString reads the NUL-terminated string at offset off.
func cString(b []byte, off uint32) (string, bool) {
	if int64(off) >= int64(len(b)) {
		return "", false
	}
	end := bytes.IndexByte(b[off:], 0)
	if end < 0 {
		return "", false
	}
	return string(b[off:][:end]), true
}
