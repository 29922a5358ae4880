package cli

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) auditProve() *cobra.Command {
	return group("prove", "Prove that a record is in a log, or that a log only grew", a.auditProveInclusion(), a.auditProveConsistency())
}

const logFlag = "name of the log in the data directory, or its directory"

// signedState is a log's newest checkpoint.
func signedState(dir string) (audit.Checkpoint, string, error) {
	raw, err := audit.ReadCheckpoint(dir)
	if err != nil {
		return audit.Checkpoint{}, "", err
	}
	cp, err := parseNote(raw)
	return cp, string(raw), err
}

// parseNote reads the checkpoint in a note, without looking at signatures.
func parseNote(raw []byte) (audit.Checkpoint, error) {
	text, _, ok := strings.Cut(string(raw), "\n\n")
	if !ok {
		return audit.Checkpoint{}, sandbox.Errorf("read checkpoint", sandbox.KindInvalid, "it is no signed checkpoint")
	}
	return audit.ParseCheckpoint(text + "\n")
}

func (a *App) auditProveInclusion() *cobra.Command {
	var log string
	cmd := &cobra.Command{
		Use:   "inclusion POSITION",
		Short: "Prove that a record is in the log the checkpoint signs",
		Long: `Inclusion prints one object: the record as it was hashed (payload), its RFC 6962 leaf
hash, the audit path to the root, and the signed checkpoint with that root.`,
		Example: "  firebreak audit prove inclusion 42 > proof.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := strconv.ParseUint(args[0], 10, 63)
			if err != nil || p == 0 {
				return sandbox.Errorf("", sandbox.KindInvalid, "%q is no position: they begin at 1", args[0])
			}
			dir, err := a.logDir(log)
			if err != nil {
				return err
			}
			return a.checked(a.proveInclusion(dir, sandbox.Position(p)))
		},
	}
	cmd.Flags().StringVar(&log, "log", "server", logFlag)
	return cmd
}

func (a *App) proveInclusion(dir string, p sandbox.Position) error {
	cp, note, err := signedState(dir)
	if err != nil {
		return err
	}
	if int64(p) > cp.Size {
		return sandbox.Errorf("prove", sandbox.KindNotFound, "the checkpoint covers %d records", cp.Size).WithHint("records are signed within about a second")
	}
	var e audit.Entry
	for got, err := range audit.Scan(dir, p) {
		if err != nil {
			return err
		}
		e = got
		break
	}
	proof, err := audit.RecordProof(dir, p, cp.Size)
	if err != nil {
		return err
	}
	if err := tlog.CheckRecord(proof, cp.Size, cp.Root, int64(p)-1, e.Leaf); err != nil {
		return &audit.EvidenceError{Position: p, What: "the record is not in the tree that was signed"}
	}
	return a.printJSON(struct {
		Origin     string           `json:"origin"`
		Position   sandbox.Position `json:"position"`
		Payload    []byte           `json:"payload"`
		Leaf       tlog.Hash        `json:"leaf"`
		Proof      []tlog.Hash      `json:"proof"`
		Checkpoint string           `json:"checkpoint"`
	}{cp.Origin, p, e.Payload, e.Leaf, hashes(proof), note})
}

// hashes makes an empty list of none.
func hashes(list []tlog.Hash) []tlog.Hash { return append([]tlog.Hash{}, list...) }

func (a *App) auditProveConsistency() *cobra.Command {
	var log string
	cmd := &cobra.Command{
		Use:   "consistency SIZE|CHECKPOINT",
		Short: "Prove that the log begins with what it was earlier",
		Long: `Consistency prints one object: the RFC 6962 consistency proof from an earlier size to
that of the signed checkpoint, which is in it. Given a file with an earlier
checkpoint, it also compares the roots: exit code 1 says that the log does not
continue it.`,
		Example: "  firebreak audit prove consistency /media/keys/checkpoint > proof.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := a.logDir(log)
			if err != nil {
				return err
			}
			var old audit.Checkpoint
			if old.Size, err = strconv.ParseInt(args[0], 10, 64); err != nil {
				raw, err := os.ReadFile(args[0])
				if err != nil {
					return sandbox.Errorf("", sandbox.KindInvalid, "%q is neither a size nor a checkpoint: %w", args[0], err)
				}
				if old, err = parseNote(raw); err != nil {
					return err
				}
			}
			if old.Size < 1 {
				return sandbox.Errorf("", sandbox.KindInvalid, "nothing is to be proved about %d records", old.Size)
			}
			return a.checked(a.proveConsistency(dir, old))
		},
	}
	cmd.Flags().StringVar(&log, "log", "server", logFlag)
	return cmd
}

func (a *App) proveConsistency(dir string, old audit.Checkpoint) error {
	cp, note, err := signedState(dir)
	if err != nil {
		return err
	}
	if old.Origin != "" && old.Origin != cp.Origin {
		return &audit.EvidenceError{What: fmt.Sprintf("the log is %s, the checkpoint is of %s", cp.Origin, old.Origin)}
	}
	if old.Size > cp.Size {
		return &audit.EvidenceError{What: fmt.Sprintf("the log has %d signed records, the earlier checkpoint %d: it was rolled back", cp.Size, old.Size)}
	}
	proof, err := audit.TreeProof(dir, old.Size, cp.Size)
	if err != nil {
		return err
	}
	if old.Origin != "" {
		if err := tlog.CheckTree(proof, cp.Size, cp.Root, old.Size, old.Root); err != nil {
			return &audit.EvidenceError{What: fmt.Sprintf("the log does not continue the checkpoint of %d records", old.Size)}
		}
	}
	return a.printJSON(struct {
		Origin     string      `json:"origin"`
		Old        int64       `json:"old_size"`
		Size       int64       `json:"size"`
		Root       string      `json:"root"`
		Proof      []tlog.Hash `json:"proof"`
		Checkpoint string      `json:"checkpoint"`
	}{cp.Origin, old.Size, cp.Size, base64.StdEncoding.EncodeToString(cp.Root[:]), hashes(proof), note})
}
