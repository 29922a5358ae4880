package e2b

import (
	"context"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// snapshotInfo is a snapshot. Its id is good wherever a template's is.
type snapshotInfo struct {
	SnapshotID string   `json:"snapshotID"`
	Names      []string `json:"names"`
}

func toSnapshotInfo(k *v1.Snapshot) snapshotInfo {
	info := snapshotInfo{SnapshotID: k.GetId(), Names: []string{}}
	if k.GetName() != "" {
		info.Names = append(info.Names, k.GetName())
	}
	return info
}

// snapshotRoutes are those of snapshots.
func (s *Server) snapshotRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST /sandboxes/{id}/snapshots", s.keyed(s.createSnapshot))
	mux.HandleFunc("GET /snapshots", s.keyed(s.listSnapshots))
	mux.HandleFunc("DELETE /templates/{snapshot}", s.keyed(s.deleteSnapshot))
}

// untagged is a snapshot's name as clients may spell it: with the only tag there is.
func untagged(name string) string { return strings.TrimSuffix(name, ":default") }

// createSnapshot saves a sandbox. One that had the name is known by its id from then
// on, as a build of a template is that has a newer one.
func (s *Server) createSnapshot(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		Name   string `json:"name"`
		Memory *bool  `json:"memory"`
	}
	if err := read(w, r, &c); err != nil {
		return err
	}
	if err := withMemory(c.Memory); err != nil {
		return err
	}
	name := untagged(c.Name)
	if name != "" && defaultTemplates[name] {
		return invalid("the name %q is a template's", name).WithHint("choose another name")
	}
	sb, err := s.alive(r)
	if err != nil {
		return err
	}
	k, err := checked(r.Context(), s, s.api.CreateSnapshot, &v1.CreateSnapshotRequest{Id: sb.GetId(), Name: name, TakeName: true})
	if err != nil {
		return err
	}
	answer(w, http.StatusCreated, toSnapshotInfo(k))
	return nil
}

// listSnapshots answers one page of them, newest first.
func (s *Server) listSnapshots(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		return err
	}
	list, err := checked(r.Context(), s, s.api.ListSnapshots, &v1.ListSnapshotsRequest{})
	if err != nil {
		return err
	}
	of, name := r.URL.Query().Get("sandboxID"), untagged(r.URL.Query().Get("name"))
	all := []snapshotInfo{}
	for _, k := range list.GetSnapshots() {
		if (of == "" || of == k.GetSandboxId()) && (name == "" || name == k.GetName() || name == k.GetId()) {
			all = append(all, toSnapshotInfo(k))
		}
	}
	all, err = page(w, all, q, func(k snapshotInfo) string { return k.SnapshotID })
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, all)
	return nil
}

// page is the part of all that q asks for; where more follows, its answer says how to
// ask for that.
func page[T any](w http.ResponseWriter, all []T, q query, id func(T) string) ([]T, error) {
	if q.after != "" {
		at := slices.IndexFunc(all, func(one T) bool { return id(one) == q.after })
		if at < 0 {
			return nil, invalid("the list has changed: the page before this one ended with what is gone").WithHint("list again from the beginning")
		}
		all = all[at+1:]
	}
	if len(all) > q.limit {
		all = all[:q.limit]
		w.Header().Set("X-Next-Token", id(all[q.limit-1]))
	}
	return all, nil
}

// deleteSnapshot removes one; the clients take it for a template.
func (s *Server) deleteSnapshot(w http.ResponseWriter, r *http.Request) error {
	if _, err := checked(r.Context(), s, s.api.RemoveSnapshot, &v1.RemoveSnapshotRequest{Id: untagged(r.PathValue("snapshot"))}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// origin sets what a sandbox is made of: the default template, a snapshot by its id or
// name, or the template called so.
func (s *Server) origin(ctx context.Context, req *v1.CreateSandboxRequest, name string) error {
	switch {
	case defaultTemplates[name]:
		return nil
	case sandbox.SnapshotID(name).Valid():
		req.Snapshot = name
		return nil
	}
	list, err := checked(ctx, s, s.api.ListSnapshots, &v1.ListSnapshotsRequest{})
	if err != nil {
		return err
	}
	for _, k := range list.GetSnapshots() {
		if k.GetName() != "" && k.GetName() == untagged(name) {
			req.Snapshot = k.GetId()
			return nil
		}
	}
	req.Template = name
	return nil
}
