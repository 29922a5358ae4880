package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
)

// metrics are the server's own, in a registry of their own.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	handler  http.Handler
}

func newMetrics(states func(context.Context) (map[string]int, error), load func() (waiting, refused map[string]int64), egress func() orchestrator.EgressStats) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firebreak_requests_total",
			Help: "Requests by operation and the HTTP status of their outcome, on every surface.",
		}, []string{"operation", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "firebreak_request_duration_seconds",
			Help:    "How long operations took; CreateSandbox and Exec are the create and exec latency.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"operation"}),
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(m.requests, m.duration, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if states != nil {
		reg.MustRegister(&stateCollector{states: states})
	}
	if load != nil {
		reg.MustRegister(loadCollector(load))
	}
	if egress != nil {
		reg.MustRegister(egressCollector(egress))
	}
	m.handler = promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second})
	return m
}

// prepare makes o's series appear before its first call.
func (m *metrics) prepare(o *operation) {
	m.duration.WithLabelValues(o.name)
	m.requests.WithLabelValues(o.name, strconv.Itoa(o.success))
}

// observe counts one exchange; o is nil where no route was found.
func (m *metrics) observe(o *operation, status int, took time.Duration) {
	name := "none" // never the path: a stranger could make series without end
	if o != nil {
		name = o.name
		m.duration.WithLabelValues(name).Observe(took.Seconds())
	}
	m.requests.WithLabelValues(name, strconv.Itoa(status)).Inc()
}

// stateCollector counts sandboxes when it is asked.
type stateCollector struct {
	states func(context.Context) (map[string]int, error)
}

var sandboxesDesc = prometheus.NewDesc("firebreak_sandboxes", "Sandboxes by state.", []string{"state"}, nil)

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- sandboxesDesc }

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	counts, err := c.states(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(sandboxesDesc, err)
		return
	}
	for state, n := range counts {
		ch <- prometheus.MustNewConstMetric(sandboxesDesc, prometheus.GaugeValue, float64(n), state)
	}
}

// loadCollector asks for what waits and what was refused. It names no tenant:
// every tenant's viewers may read the metrics.
type loadCollector func() (waiting, refused map[string]int64)

var (
	waitingDesc = prometheus.NewDesc("firebreak_waiting", "Callers that wait for their turn, by what they wait for.", []string{"for"}, nil)
	refusedDesc = prometheus.NewDesc("firebreak_refused_total", "Refusals for want of capacity, by the quota or the part of the host that was used up.", []string{"quota"}, nil)
)

// Describe implements prometheus.Collector.
func (c loadCollector) Describe(ch chan<- *prometheus.Desc) { ch <- waitingDesc; ch <- refusedDesc }

// Collect implements prometheus.Collector.
func (c loadCollector) Collect(ch chan<- prometheus.Metric) {
	waiting, refused := c()
	for name, n := range waiting {
		ch <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(n), name)
	}
	for name, n := range refused {
		ch <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(n), name)
	}
}

// egressCollector asks for what sandboxes wanted to reach. It names no tenant,
// host or rule.
type egressCollector func() orchestrator.EgressStats

var (
	egressFlowsDesc = prometheus.NewDesc("firebreak_egress_flows_total", "Names that sandboxes asked for (dns), connections they wanted (connect) and requests through bindings (request), by decision.", []string{"kind", "decision"}, nil)
	egressBytesDesc = prometheus.NewDesc("firebreak_egress_bytes_total", "Bytes of connections that are over, by direction.", []string{"direction"}, nil)
)

// Describe implements prometheus.Collector.
func (c egressCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- egressFlowsDesc
	ch <- egressBytesDesc
}

// Collect implements prometheus.Collector.
func (c egressCollector) Collect(ch chan<- prometheus.Metric) {
	s := c()
	for k, n := range s.Flows {
		ch <- prometheus.MustNewConstMetric(egressFlowsDesc, prometheus.CounterValue, float64(n), k[0], k[1])
	}
	ch <- prometheus.MustNewConstMetric(egressBytesDesc, prometheus.CounterValue, float64(s.Upload), "upload")
	ch <- prometheus.MustNewConstMetric(egressBytesDesc, prometheus.CounterValue, float64(s.Download), "download")
}
