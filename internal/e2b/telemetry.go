package e2b

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// metric is what a sandbox used at one moment. Processor time is in per cent of
// what it may use; the boot, which nothing limits, counts as all of it.
type metric struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"`
	MemUsed       int64     `json:"memUsed"`
	MemTotal      int64     `json:"memTotal"`
	MemCache      int64     `json:"memCache"`
	DiskUsed      int64     `json:"diskUsed"`
	DiskTotal     int64     `json:"diskTotal"`
}

// metrics answers what a sandbox has used, oldest first.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.alive(r); err != nil {
		return err
	}
	q, req := r.URL.Query(), &v1.GetMetricsRequest{Id: r.PathValue("id")}
	var err error
	if req.Start, err = seconds(q, "start"); err == nil {
		req.End, err = seconds(q, "end")
	}
	if err != nil {
		return err
	}
	m, err := checked(r.Context(), s, s.api.GetMetrics, req)
	if err != nil {
		return err
	}
	cpus := max(m.GetLimits().GetCpus().GetValue(), 0.001)
	out := []metric{}
	for _, one := range m.GetSamples() {
		out = append(out, metric{Timestamp: one.GetTime().AsTime(), TimestampUnix: one.GetTime().GetSeconds(), CPUCount: max(1, int(cpus)),
			CPUUsedPct: min(100, 100*one.GetCpus()/cpus), MemUsed: one.GetMemoryBytes(), MemTotal: int64(m.GetLimits().GetMemoryBytes().GetValue()),
			DiskUsed: one.GetDiskBytes(), DiskTotal: int64(m.GetLimits().GetDiskBytes().GetValue())})
	}
	answer(w, http.StatusOK, out)
	return nil
}

// seconds reads a time in a query, in seconds since 1970; nil if it is not there.
func seconds(q url.Values, name string) (*timestamppb.Timestamp, error) {
	text := q.Get(name)
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > never.Unix() {
		return nil, invalid("%s %.20q is no time", name, text).WithHint("seconds since 1970")
	}
	return &timestamppb.Timestamp{Seconds: n}, nil
}

// logLine is something that happened in a sandbox.
type logLine struct {
	Timestamp time.Time         `json:"timestamp"`
	Message   string            `json:"message"`
	Level     string            `json:"level"`
	Fields    map[string]string `json:"fields"`
	Line      string            `json:"line"` // all of it as JSON, where the CLI looks
}

// maxLogs is the most lines one answer holds.
const maxLogs = 1000

// logs answers what is kept of a sandbox's events, output included, which is a
// bounded amount. Times are in milliseconds since 1970.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) error {
	sb, err := checked(r.Context(), s, s.api.GetSandbox, &v1.GetSandboxRequest{Id: r.PathValue("id")}) // also of one that has ended
	if err != nil {
		return err
	}
	q := r.URL.Query()
	backward, limit := q.Get("direction") == "backward", maxLogs
	if n, err := strconv.Atoi(q.Get("limit")); err == nil && n > 0 {
		limit = min(n, maxLogs)
	}
	from := max(number(q, "cursor"), number(q, "start"))
	lines := []logLine{}
	err = s.api.WatchEvents(r.Context(), &v1.WatchEventsRequest{Id: sb.GetId(), NoFollow: true}, func(e *v1.Event) error {
		at := e.GetTime().AsTime().UnixMilli()
		switch {
		case backward && from > 0 && at > from, !backward && at < from:
			return nil
		case len(lines) < limit:
		case backward: // the latest ones
			lines = slices.Delete(lines, 0, 1)
		default:
			return nil
		}
		lines = append(lines, toLog(e))
		return nil
	})
	if err != nil {
		return err
	}
	if backward {
		slices.Reverse(lines)
	}
	answer(w, http.StatusOK, map[string]any{"logs": lines, "logEntries": lines})
	return nil
}

func number(q url.Values, name string) int64 {
	n, err := strconv.ParseInt(q.Get(name), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func toLog(e *v1.Event) logLine {
	l := logLine{Timestamp: e.GetTime().AsTime(), Level: "info", Fields: map[string]string{"logger": "firebreak", "event_type": e.GetType()}}
	if e.GetPid() != 0 {
		l.Fields["pid"] = strconv.FormatInt(e.GetPid(), 10)
	}
	switch e.GetType() {
	case "stdout", "pty":
		l.Message = string(eventBytes(e))
	case "stderr":
		l.Message, l.Level = string(eventBytes(e)), "warn"
	case "state":
		l.Message = "sandbox " + e.GetState()
	case "exit":
		l.Message = "process ended: " + e.GetReason()
		l.Fields["exit_code"] = strconv.Itoa(int(e.GetExitCode()))
	default:
		l.Message = e.GetType()
	}
	for name, value := range map[string]string{"reason": e.GetReason(), "detail": e.GetDetail()} {
		if value != "" {
			l.Fields[name] = value
		}
	}
	line := map[string]string{"level": l.Level, "message": l.Message}
	maps.Copy(line, l.Fields)
	if b, err := json.Marshal(line); err == nil { // strings always encode
		l.Line = string(b)
	}
	return l
}
