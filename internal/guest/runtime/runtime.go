// Package runtime holds the language modules that Firebreak brings into every
// sandbox. Backends lay them out, with the agent, under guest.RuntimeDir:
//
//	python/firebreak.py   import firebreak; firebreak.result({"ok": 1})
//	node/firebreak.js     global firebreak; firebreak.result({ok: 1})
package runtime

import "embed"

// Files is the tree to lay out, read-only.
//
//go:embed python node
var Files embed.FS
