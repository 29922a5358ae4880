package client

import (
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestCreateWorkspaceRefused: what does not go together is refused before a server is
// asked. That the rest is done is e2e TestCreateWorkspace's to show.
func TestCreateWorkspaceRefused(t *testing.T) {
	c, err := New(Options{URL: "http://127.0.0.1:9", APIKey: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for what, o := range map[string]WorkspaceOptions{
		"a template and a path": {CreateOptions: CreateOptions{Template: "python"}, RootfsImagePath: "/srv/rootfs"},
		"a kernel alone":        {KernelImagePath: "/srv/vmlinux"},
	} {
		if _, err := c.CreateWorkspace(t.Context(), "my-agent", o); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}
