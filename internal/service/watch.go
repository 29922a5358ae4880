package service

import (
	"context"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// WatchFiles reports what changes in a directory, after an event of type start.
func (s *Service) WatchFiles(ctx context.Context, req *v1.WatchFilesRequest, send func(*v1.FileEvent) error) error {
	who, _, err := s.allow(ctx, "FileService.WatchFiles")
	if err != nil {
		return err
	}
	return s.Orchestrator.WatchFiles(ctx, who, req.GetId(), home(req.GetPath()), guest.WatchOptions{User: req.GetUser(), Recursive: req.GetRecursive()},
		func() error { return send(&v1.FileEvent{Type: "start"}) },
		func(e guest.FileEvent) error { return send(toFileEvent(e)) })
}

// CreateWatcher begins to collect what changes in a directory.
func (s *Service) CreateWatcher(ctx context.Context, req *v1.CreateWatcherRequest) (*v1.Watcher, error) {
	who, _, err := s.allow(ctx, "FileService.CreateWatcher")
	if err != nil {
		return nil, err
	}
	id, err := s.Orchestrator.CreateWatcher(ctx, who, req.GetId(), home(req.GetPath()),
		guest.WatchOptions{User: req.GetUser(), Recursive: req.GetRecursive()})
	if err != nil {
		return nil, err
	}
	return &v1.Watcher{Watcher: id}, nil
}

// GetWatcherEvents returns what a watcher has collected.
func (s *Service) GetWatcherEvents(ctx context.Context, req *v1.GetWatcherEventsRequest) (*v1.GetWatcherEventsResponse, error) {
	who, _, err := s.allow(ctx, "FileService.GetWatcherEvents")
	if err != nil {
		return nil, err
	}
	events, over, err := s.Orchestrator.WatcherEvents(ctx, who.Tenant, req.GetId(), req.GetWatcher())
	if err != nil {
		return nil, err
	}
	res := &v1.GetWatcherEventsResponse{Over: over, Events: make([]*v1.FileEvent, len(events))}
	for i, e := range events {
		res.Events[i] = toFileEvent(e)
	}
	return res, nil
}

// RemoveWatcher ends a watcher.
func (s *Service) RemoveWatcher(ctx context.Context, req *v1.RemoveWatcherRequest) (*v1.RemoveWatcherResponse, error) {
	who, _, err := s.allow(ctx, "FileService.RemoveWatcher")
	if err != nil {
		return nil, err
	}
	return &v1.RemoveWatcherResponse{}, s.Orchestrator.RemoveWatcher(ctx, who, req.GetId(), req.GetWatcher())
}

// home is the directory path, or the user's home.
func home(path string) string {
	if path == "" {
		return "."
	}
	return path
}

func toFileEvent(e guest.FileEvent) *v1.FileEvent { return &v1.FileEvent{Type: e.Type, Path: e.Path} }
