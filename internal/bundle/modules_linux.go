package bundle

import (
	"embed"
	"io/fs"
)

// modules are the language modules that go beside the agent.
var modules fs.FS = embed.FS{}
