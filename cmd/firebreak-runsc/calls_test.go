package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	runsc "gvisor.dev/gvisor/runsc/boot"
)

// TestCalls: this version of gVisor understands all of what internal/backend/gvisor
// sends to a sentry. A field that it does not know would be ignored in silence.
func TestCalls(t *testing.T) {
	b, err := os.ReadFile("../../internal/backend/gvisor/testdata/calls.json")
	if err != nil {
		t.Fatal(err)
	}
	var calls []struct {
		Method string          `json:"method"`
		Arg    json.RawMessage `json:"arg"`
	}
	if err := json.Unmarshal(b, &calls); err != nil || len(calls) != 4 {
		t.Fatalf("%d calls, %v", len(calls), err)
	}
	decode := func(k int, method string, arg any) {
		t.Helper()
		d := json.NewDecoder(bytes.NewReader(calls[k].Arg))
		d.DisallowUnknownFields()
		if err := d.Decode(arg); err != nil || calls[k].Method != method {
			t.Errorf("%s: %v", calls[k].Method, err)
		}
	}
	var save control.SaveOpts
	decode(0, runsc.ContMgrCheckpoint, &save)
	if !save.HavePagesFile || !save.Resume || save.Metadata["compression"] != "none" {
		t.Errorf("%+v", save)
	}
	var network runsc.CreateLinksAndRoutesArgs
	decode(1, runsc.ContMgrSetNetworkArgs, &network)
	want, got := runsc.DefaultLoopbackLink, network.LoopbackLinks
	if len(got) != 1 || !network.IsRestore || got[0].Name != want.Name || len(got[0].Addresses) != len(want.Addresses) || len(got[0].Routes) != len(want.Routes) {
		t.Fatalf("%+v", network)
	}
	for k, a := range want.Addresses {
		if g := got[0].Addresses[k]; !g.Address.Equal(a.Address) || g.PrefixLen != a.PrefixLen {
			t.Errorf("%+v, not %+v", g, a)
		}
	}
	for k, r := range want.Routes {
		if g := got[0].Routes[k]; g.Destination.String() != r.Destination.String() {
			t.Errorf("%v, not %v", g.Destination, r.Destination)
		}
	}
	var restore runsc.RestoreOpts
	decode(2, runsc.ContMgrRestore, &restore)
	if !restore.HavePagesFile || restore.HaveDeviceFile || restore.Background {
		t.Errorf("%+v", restore)
	}
	var id string
	if decode(3, runsc.ContMgrRootContainerStart, &id); id != "in" {
		t.Errorf("%q is started", id)
	}
	if names := []string{checkpointfiles.StateFileName, checkpointfiles.PagesMetadataFileName, checkpointfiles.PagesFileName}; !slices.Equal(names, []string{"checkpoint.img", "pages_meta.img", "pages.img"}) {
		t.Errorf("the files are called %v", names)
	}
}
