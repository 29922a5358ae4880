package backup

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Format is the version of the archive's layout. A program reads its own and
// older ones. 2 came with signed audit logs.
const Format = 2

const (
	headerName   = "header.json"
	manifestName = "manifest.json"
	stateName    = "state.db"
	configName   = "firebreak.yaml"
)

// Manifest describes a backup. As the header, which comes first, it has neither
// Audit nor Members, and Bytes and Count are upper bounds.
type Manifest struct {
	Format    int             `json:"format"`
	Firebreak string          `json:"firebreak"` // version of the program that made it
	Schema    int             `json:"schema"`    // of state.db
	Created   time.Time       `json:"created"`
	Bytes     int64           `json:"bytes"` // of all members
	Count     int             `json:"count"` // of members
	Templates []Template      `json:"templates,omitempty"`
	Audit     map[string]Head `json:"audit,omitempty"` // by directory
	Members   []Member        `json:"members,omitempty"`
	// Sealed is how many secrets are in it whose key is not; set by Restore.
	Sealed int `json:"-"`
}

// Template is one that sandboxes started from, to be built or pulled again.
type Template struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Source string `json:"source,omitempty"` // an image reference, if it came from one
}

// Head is where an audit log ends.
type Head struct {
	Position sandbox.Position `json:"position"`
	Hash     string           `json:"hash"` // hex
}

// Member is one file of a backup.
type Member struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// Bounds of what Restore reads, whatever a header says.
const (
	maxName     = 8192 // an artifact may have 4095 below its run
	maxHeader   = 1 << 20
	maxMembers  = 20_000_000
	maxManifest = maxHeader + 6000*maxMembers
	maxWindow   = 16 << 20 // bytes of memory the decompressor may use
)

var (
	auditDir  = regexp.MustCompile(`^(server|run-[0-9a-z-]{1,64})$`)
	auditFile = regexp.MustCompile(`^([0-9]{20}\.(log|cut)|expired\.json|checkpoint|rotate/[0-9]{20}|cosigned/[0-9a-f]{8}|tile/8/[0-9]{1,2}/(x[0-9]{3}/){0,6}[0-9]{3}(\.p/[0-9]{1,3})?)$`)
	auditKey  = regexp.MustCompile(`^key(\.pub|\.old)?$`)
)

// allowed reports whether a file of that name belongs into a data directory. A
// backup may come from anywhere: this list is what keeps it from bringing
// programs, or reaching out of the directory.
func allowed(name string) bool {
	if !fs.ValidPath(name) || !filepath.IsLocal(filepath.FromSlash(name)) || len(name) > maxName {
		return false
	}
	part := strings.SplitN(name, "/", 4)
	switch {
	case len(part) == 1:
		return name == stateName || name == configName
	case len(part) == 2 && part[0] == "events":
		id, suffix, _ := strings.Cut(part[1], ".")
		return sandbox.ID(id).Valid() && (suffix == "events" || suffix == "out" || suffix == "out.old")
	case len(part) == 2 && part[0] == "audit":
		return auditKey.MatchString(part[1])
	case len(part) >= 3 && part[0] == "audit":
		return auditDir.MatchString(part[1]) && auditFile.MatchString(strings.Join(part[2:], "/"))
	case len(part) == 3 && part[0] == "runs":
		return sandbox.RunID(part[1]).Valid() && (part[2] == "stdout" || part[2] == "stderr")
	case len(part) == 4 && part[0] == "runs":
		return sandbox.RunID(part[1]).Valid() && part[2] == "artifacts" && artifact(part[3])
	}
	return false
}

// artifact is as strict about names as the collector of artifacts was.
func artifact(name string) bool {
	for e := range strings.SplitSeq(name, "/") {
		if len(e) > 255 {
			return false
		}
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == '\uFFFD' })
}

func headOf(h audit.Head) Head { return Head{h.Position, hexOf(h.Hash[:])} }
