package fake

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// formats are the versions of a state file by minor version, from persist.rs of the
// releases.
var formats = map[int]string{8: "2.0.0", 10: "3.0.0", 13: "8.0.0", 14: "8.0.0", 15: "9.0.0", 16: "10.0.0", 17: "11.0.0"}

func format(minor int) string {
	if v, ok := formats[minor]; ok {
		return v
	}
	return fmt.Sprintf("0.%d.0", minor)
}

// magic begins a state file on x86_64.
const magic = 0x0710_1984_8664_0000

// stateSize is how large a state file is at least: as a real one's.
const stateSize = 14 << 10

// memoryAt is where in a memory file lies what Process.Memory says.
const memoryAt = 1 << 20

// state is what a state file of this fake holds in place of a machine's.
type state struct {
	Configured Configuration `json:"configured"`
	Size       int           `json:"size"`   // of what is in the memory
	Sum        []byte        `json:"sum"`    // of that
	Filler     string        `json:"filler"` // devices
}

var polynomial = crc64.MakeTable(crc64.ISO)

// path is where the process finds a file.
func (f *Process) path(name string) string { return filepath.Join(f.root, name) }

// memorySize is that of the configured machine.
func memorySize(have Configuration) int64 {
	mib, _ := have["PUT /machine-config"]["mem_size_mib"].(float64)
	return int64(mib) << 20
}

// save writes both files as Firecracker does: the state, truncated; the memory, as large
// as the machine's. f.mu is held.
func (f *Process) save(statePath, memoryPath string) error {
	var content []byte
	if f.Memory != nil {
		content = f.Memory()
	}
	sum := sha256.Sum256(content)
	s, err := json.Marshal(state{f.have, len(content), sum[:], strings.Repeat("x", stateSize)})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, uint64(magic))
	b.WriteString(format(f.minor) + "\n")
	b.Write(s)
	binary.Write(&b, binary.LittleEndian, crc64.Checksum(b.Bytes(), polynomial))
	if err := os.WriteFile(f.path(statePath), b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("Cannot perform open on the snapshot backing file: %w", told(err))
	}
	m, err := os.OpenFile(f.path(memoryPath), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("Cannot perform open on the memory backing file: %w", told(err))
	}
	_, err = m.WriteAt(content, memoryAt)
	return errors.Join(m.Truncate(memorySize(f.have)), err, m.Close())
}

// restore reads both, in the order and with the checks of Firecracker.
func (f *Process) restore(statePath, memoryPath string) (Configuration, []byte, error) {
	fromFile := func(format string, args ...any) (Configuration, []byte, error) {
		return nil, nil, fmt.Errorf("Failed to get snapshot state from file: "+format, args...)
	}
	b, err := os.ReadFile(f.path(statePath))
	if err != nil {
		return fromFile("Failed to open snapshot file: %w", told(err))
	}
	if len(b) < 16 || crc64.Checksum(b[:len(b)-8], polynomial) != binary.LittleEndian.Uint64(b[len(b)-8:]) {
		return fromFile("Failed to load snapshot state from file: CRC64 validation failed")
	}
	if m := binary.LittleEndian.Uint64(b); m != magic {
		return fromFile("Failed to load snapshot state from file: Magic value does not match arch: %d", m)
	}
	version, rest, _ := bytes.Cut(b[8:len(b)-8], []byte("\n"))
	if string(version) != format(f.minor) {
		return fromFile("Failed to load snapshot state from file: Invalid data version: %s", version)
	}
	var s state
	if err := json.Unmarshal(rest, &s); err != nil {
		return fromFile("Failed to load snapshot state from file: An error occurred during bitcode serialization: %w", err)
	}
	content, err := f.readMemory(memoryPath, s)
	if err != nil {
		return nil, nil, fmt.Errorf("Failed to load guest memory: Error creating guest memory from file: %w", err)
	}
	for route, c := range s.Configured {
		if name, ok := c["path_on_host"].(string); ok && strings.HasPrefix(route, "PUT /drives/") {
			d, err := os.OpenFile(f.path(name), access(c["is_read_only"] == true), 0)
			if err != nil {
				return nil, nil, fmt.Errorf("Failed to build microVM from snapshot: Failed to restore devices: Block: %w", told(err))
			}
			d.Close()
		}
	}
	if name, ok := s.Configured["PUT /vsock"]["uds_path"].(string); ok {
		if _, err := os.Lstat(f.path(name)); err == nil {
			return nil, nil, errors.New("Failed to build microVM from snapshot: Failed to restore devices: VsockUnixBackend: Error binding to the host-side Unix socket: Address in use (os error 98)")
		}
	}
	return s.Configured, content, nil
}

func access(readonly bool) int {
	if readonly {
		return os.O_RDONLY
	}
	return os.O_RDWR
}

// readMemory looks at a memory file, of which Firecracker maps what the state says.
func (f *Process) readMemory(name string, s state) ([]byte, error) {
	m, err := os.Open(f.path(name))
	if err != nil {
		return nil, fmt.Errorf("Failed to load guest memory: %w", told(err))
	}
	defer m.Close()
	fi, err := m.Stat()
	if err != nil || fi.Size() < memorySize(s.Configured) {
		return nil, errors.New("Failed to restore guest memory: Total sum of memory regions exceeds largest possible file offset")
	}
	content := make([]byte, s.Size)
	if _, err := io.ReadFull(io.NewSectionReader(m, memoryAt, int64(s.Size)), content); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(content); !bytes.Equal(sum[:], s.Sum) {
		return nil, errors.New("the fake: this memory is not the one that was saved with the state")
	}
	return content, nil
}

// told is an error of the system as Rust tells it.
func told(err error) error {
	errno := syscall.Errno(0)
	if !errors.As(err, &errno) {
		return err
	}
	text := errno.Error()
	if errors.Is(err, fs.ErrNotExist) {
		text = "No such file or directory"
	}
	return fmt.Errorf("%s (os error %d)", text, int(errno))
}
