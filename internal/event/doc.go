// Package event keeps what happened in each sandbox as a numbered sequence that
// any number of readers can follow live and resume exactly, across restarts of
// the daemon and after the sandbox's death.
//
//	h, err := event.Open(dir, event.Options{}, log)
//	id, err := h.Publish(sb.ID, event.Event{Type: event.Stdout, Process: "p1", Data: chunk})
//
//	sub, err := h.Subscribe(ctx, sb.ID, lastEventID)   // 0: from the beginning
//	defer sub.Close()
//	for {
//		batch, err := sub.Next(ctx)                // one or more events; io.EOF after the last
//		…
//	}
//
// A reader pulls at its own pace and never delays a publisher: what it has not
// read yet waits in a small ring in memory or else on disk. What processes did
// is bounded on disk, oldest dropped first; where something is missing a reader
// gets a Truncated event. Changes of state and the receipt are kept until the
// sandbox's retention ends.
//
// Events survive kill -9 of the daemon, but are not fsynced: they are not
// evidence, that is internal/audit.
package event
