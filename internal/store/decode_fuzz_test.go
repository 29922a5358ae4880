package store

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// FuzzPageToken: a token is refused as invalid, or belongs to this very list
// and means the same again.
func FuzzPageToken(f *testing.F) {
	filter := digest("sandboxes", "default", Filter{})
	f.Add(pageToken{5, "sbaaaaaaaaaaaaaaaaaa", filter}.encode())
	f.Add("e30")
	f.Add("bnVsbA")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := decodeToken(s, filter)
		if err != nil {
			if sandbox.KindOf(err) != sandbox.KindInvalid {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		if !slices.Equal(p.Filter, filter) {
			t.Fatalf("%+v is of another list", p)
		}
		if again, err := decodeToken(p.encode(), filter); err != nil || again.ID != p.ID || again.Created != p.Created {
			t.Fatalf("%+v became %+v, %v", p, again, err)
		}
	})
}

// FuzzRow: a record is damaged, or reads back as it is written again; its
// tenant is the row's, whatever the body claims.
func FuzzRow(f *testing.F) {
	b, err := json.Marshal(Sandbox{ID: sandbox.NewID(), State: Running, Metadata: map[string]string{"a": "b"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"Tenant":"other","tenant":"other","Version":9}`))
	f.Add([]byte(`{"receipt":{"objects":[{}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		sb, err := (&sandboxRow{tenant: "mine", version: 3, body: body}).sandbox()
		if err != nil {
			if sandbox.KindOf(err) != sandbox.KindInternal {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		if sb.Tenant != "mine" || sb.Version != 3 {
			t.Fatalf("%+v", sb)
		}
		once, err := sb.body()
		if err != nil {
			return // a time out of range, or too large: refused, not stored
		}
		again, err := (&sandboxRow{tenant: "mine", version: 3, body: []byte(once)}).sandbox()
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := again.body(); err != nil || twice != once {
			t.Fatalf("%s became %s, %v", once, twice, err)
		}
	})
}
