package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What a server records about itself. An in-process run has no beginning and no
// end of its own: its log is about its sandbox.

// own is a record of the server about itself, which only the operator reads.
func own(action string, outcome sandbox.Outcome, detail map[string]string) sandbox.Record {
	return sandbox.Record{Tenant: sandbox.DefaultTenant, Principal: "system", Action: action, Outcome: outcome, Detail: detail}
}

// recordStart records, before anything is recovered or served, what serves and
// with which quotas.
func (w Wiring) recordStart(ctx context.Context, n *node, c *config.Config) error {
	d := map[string]string{"version": w.Build.Version, "revision": w.Build.Revision, "pid": strconv.Itoa(os.Getpid()), "config": configDigest(c)}
	var names []string
	for _, b := range n.backends {
		if info, err := b.Info(ctx); err == nil {
			names = append(names, fmt.Sprintf("%s %s (available %t)", info.Name, info.Version, info.Available))
		}
	}
	d["backends"] = strings.Join(names, ", ")
	if _, err := n.evidence.Record(ctx, own("daemon.start", sandbox.OutcomeAllowed, d)); err != nil {
		return err
	}
	for _, r := range quotaRecords(&c.Quota) {
		if _, err := n.evidence.Record(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// recordStop records the server's end, when nothing of it works any more but the
// log. Where that is broken, it is the missing record that tells.
func (n *node) recordStop(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	why := "asked to stop"
	if cause != nil {
		why = strings.ToValidUTF8(cause.Error(), "?")
		why = why[:min(len(why), 1000)]
	}
	_, err := n.evidence.Record(ctx, own("daemon.stop", sandbox.OutcomeDone, map[string]string{"why": why}))
	if n.evidence.Err() != nil { // known, and told, already
		return nil
	}
	return err
}

// configDigest is the SHA-256 of the effective configuration, a "key: value" line
// for each key that is not secret.
func configDigest(c *config.Config) string {
	h := sha256.New()
	for _, k := range config.Keys {
		if !k.Secret {
			fmt.Fprintf(h, "%s: %s\n", k.Name, c.Value(k))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// quotaRecords tells which quotas are in force: the common ones, and those of
// each tenant that has its own.
func quotaRecords(q *orchestrator.Quota) []sandbox.Record {
	tenants := append([]sandbox.TenantID{""}, slices.Sorted(maps.Keys(q.Tenants))...)
	var all []sandbox.Record
	for _, t := range tenants {
		d := map[string]string{}
		limits := q.Of(t)
		for _, r := range orchestrator.Resources {
			d[r.Name] = strconv.FormatInt(*r.Field(&limits), 10)
		}
		rec := own("quota.set", sandbox.OutcomeAllowed, d)
		rec.Object = string(t)
		all = append(all, rec)
	}
	return all
}
