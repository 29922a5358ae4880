package e2b

import (
	"net/url"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestParseQuery reads what the clients send: pairs that are escaped, and escaped
// once more as a whole.
func TestParseQuery(t *testing.T) {
	v, err := url.ParseQuery("metadata=a%2520b%3Dc%2526d%253De&state=running%2Cpaused&limit=7&order=asc&template=base&startedAfter=2026-01-02T03%3A04%3A05.000Z&nextToken=x")
	if err != nil {
		t.Fatal(err)
	}
	q, err := parseQuery(v)
	if err != nil {
		t.Fatal(err)
	}
	if q.metadata["a b"] != "c&d=e" || len(q.metadata) != 1 || len(q.states) != 2 || q.limit != 7 || !q.ascending || q.template != "base" || q.after != "x" ||
		!q.startedAfter.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%+v", q)
	}
	if !q.takes(listed{State: "running", TemplateID: "base", StartedAt: time.Now()}) || q.takes(listed{State: "running", TemplateID: "other", StartedAt: time.Now()}) ||
		q.takes(listed{State: "running", TemplateID: "base"}) {
		t.Error("the filter takes the wrong ones")
	}
	for _, bad := range []string{"limit=0", "limit=101", "limit=x", "startedAfter=yesterday", "metadata=%25zz%3D1", "metadata=%3Dv"} {
		v, err := url.ParseQuery(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseQuery(v); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// FuzzParseQuery: whatever a query holds is read or refused, within its bounds.
func FuzzParseQuery(f *testing.F) {
	for _, s := range []string{"", "metadata=a%3Db", "metadata=a%2520b%3Dc%2526d%253De&limit=3", "state=running&order=desc", "limit=-1", "metadata=%2525%3D"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := url.ParseQuery(s)
		if err != nil {
			return
		}
		q, err := parseQuery(v)
		switch {
		case err != nil && sandbox.KindOf(err) != sandbox.KindInvalid:
			t.Errorf("%v", err)
		case err == nil && (q.limit < 1 || q.limit > maxPage):
			t.Errorf("limit %d", q.limit)
		case err == nil:
			if _, empty := q.metadata[""]; empty {
				t.Error("an empty key")
			}
		}
	})
}

// TestPaths: where E2B's clients mean the home.
func TestPaths(t *testing.T) {
	for in, want := range map[string]string{"": ".", "~": ".", "~/a": "a", "a/b": "a/b", "/etc": "/etc", "~user/x": "~user/x", ".": "."} {
		if got := file(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
