package e2b

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// listed is a sandbox in a list.
type listed struct {
	TemplateID   string            `json:"templateID"`
	Alias        string            `json:"alias,omitempty"`
	SandboxID    string            `json:"sandboxID"`
	ClientID     string            `json:"clientID"`
	StartedAt    time.Time         `json:"startedAt"`
	EndAt        time.Time         `json:"endAt"`
	CPUCount     int               `json:"cpuCount"`
	MemoryMB     int               `json:"memoryMB"`
	DiskSizeMB   int               `json:"diskSizeMB"`
	Metadata     map[string]string `json:"metadata"`
	State        string            `json:"state"`
	EnvdVersion  string            `json:"envdVersion"`
	VolumeMounts []struct{}        `json:"volumeMounts"`
}

// detailed is one asked for alone. What it says of the network is what holds,
// whatever was asked for.
type detailed struct {
	listed
	Domain              *string         `json:"domain"`
	AllowInternetAccess bool            `json:"allowInternetAccess"`
	Network             networkDetail   `json:"network"`
	Lifecycle           lifecycleDetail `json:"lifecycle"`
}

type networkDetail struct {
	AllowOut           []string              `json:"allowOut"`
	DenyOut            []string              `json:"denyOut"`
	Rules              map[string][]hostRule `json:"rules,omitempty"`
	AllowPublicTraffic bool                  `json:"allowPublicTraffic"`
}

type lifecycleDetail struct {
	OnTimeout  string `json:"onTimeout"`
	AutoResume bool   `json:"autoResume"`
}

// never is when a sandbox without an end ends, to clients that want a time.
var never = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

func (s *Server) toListed(sb *v1.Sandbox) listed {
	l := sb.GetLimits()
	out := listed{TemplateID: s.templateID(sb), Alias: sb.GetName(), SandboxID: sb.GetId(), ClientID: clientID,
		StartedAt: sb.GetCreatedAt().AsTime(), EndAt: never, Metadata: sb.GetMetadata(), State: "running", EnvdVersion: envdVersion,
		CPUCount: max(1, int(l.GetCpus().GetValue())), MemoryMB: int(l.GetMemoryBytes().GetValue()) >> 20, DiskSizeMB: int(l.GetDiskBytes().GetValue()) >> 20,
		VolumeMounts: []struct{}{}}
	if sb.GetState() == "paused" {
		out.State = "paused"
	}
	if sb.GetStartedAt() != nil {
		out.StartedAt = sb.GetStartedAt().AsTime()
	}
	if sb.GetExpiresAt() != nil {
		out.EndAt = sb.GetExpiresAt().AsTime()
	}
	if out.Metadata == nil {
		out.Metadata = map[string]string{}
	}
	return out
}

func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	sb, err := s.alive(r)
	if err != nil {
		return err
	}
	network, open := toNetwork(sb.GetNetwork())
	answer(w, http.StatusOK, detailed{listed: s.toListed(sb), Domain: s.toldDomain(), AllowInternetAccess: open,
		Network: network, Lifecycle: toLifecycle(sb)})
	return nil
}

// query is what a list asks for.
type query struct {
	metadata     map[string]string
	states       []string
	template     string
	startedAfter time.Time
	ascending    bool
	limit        int
	after        string // the id the last page ended with
}

// maxPage is the most sandboxes one answer holds; E2B's default is as many.
const maxPage = 100

// parseQuery reads what old and new clients send.
func parseQuery(v url.Values) (q query, err error) {
	q = query{limit: maxPage, template: v.Get("template"), after: v.Get("nextToken"), ascending: v.Get("order") == "asc"}
	for _, state := range v["state"] {
		q.states = append(q.states, strings.Split(state, ",")...)
	}
	if n := v.Get("limit"); n != "" {
		if q.limit, err = strconv.Atoi(n); err != nil || q.limit < 1 || q.limit > maxPage {
			return q, invalid("limit %.20q is out of range", n).WithHint("from 1 to %d", maxPage)
		}
	}
	if t := v.Get("startedAfter"); t != "" {
		if q.startedAfter, err = time.Parse(time.RFC3339, t); err != nil {
			return q, invalid("startedAfter %.40q is not a time", t).WithHint("as RFC 3339 writes it")
		}
	}
	// Keys and values are escaped, and the pairs once more as a whole.
	pairs, err := url.ParseQuery(v.Get("metadata"))
	if err != nil {
		return q, invalid("metadata is not a list of pairs")
	}
	q.metadata = map[string]string{}
	for k, values := range pairs {
		key, err1 := url.QueryUnescape(k)
		value, err2 := url.QueryUnescape(values[0])
		if err1 != nil || err2 != nil || key == "" {
			return q, invalid("metadata is not a list of pairs")
		}
		q.metadata[key] = value
	}
	return q, nil
}

// takes reports whether a sandbox that matches the metadata is asked for.
func (q *query) takes(sb listed) bool {
	return (len(q.states) == 0 || slices.Contains(q.states, sb.State)) && (q.template == "" || q.template == sb.TemplateID) &&
		sb.StartedAt.After(q.startedAfter)
}

// list answers one page of the sandboxes that live, newest first unless asked
// otherwise.
func (s *Server) list(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		return err
	}
	if !strings.HasPrefix(r.URL.Path, "/v2/") && len(q.states) == 0 {
		q.states = []string{"running"} // what there was when this route was all
	}
	all := []listed{}
	req := &v1.ListSandboxesRequest{Metadata: q.metadata, PageSize: 500}
	for {
		page, err := checked(r.Context(), s, s.api.ListSandboxes, req)
		if err != nil {
			return err
		}
		for _, sb := range page.GetSandboxes() {
			if sb.GetState() != "running" && sb.GetState() != "paused" {
				continue
			}
			if l := s.toListed(sb); q.takes(l) {
				all = append(all, l)
			}
		}
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if q.ascending {
		slices.Reverse(all)
	}
	if all, err = page(w, all, q, func(l listed) string { return l.SandboxID }); err != nil {
		return err
	}
	answer(w, http.StatusOK, all)
	return nil
}
