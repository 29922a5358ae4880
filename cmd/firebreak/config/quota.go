package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// none is how "no limit" is written.
const none = "0"

// quotaKeys are the keys of Config.Quota: one for each resource, one for the
// tenants that differ, one for the host's disk.
func quotaKeys() []Key {
	keys := []Key{{
		Name: "disk_reserve", Env: "FIREBREAK_DISK_RESERVE", Kind: "size",
		Doc: "what stays free on the disk of data: below it nothing new is begun; 0: 1GiB, or a twentieth of a small disk",
		set: func(c *Config, v string) (err error) {
			if c.Quota.DiskReserve, err = parseAmount(orchestrator.Bytes, v); c.Quota.DiskReserve < 0 {
				c.Quota.DiskReserve = 0
			}
			return err
		},
		Default: func(Source) string { return none },
		get: func(c *Config) string {
			if c.Quota.DiskReserve == 0 {
				return none
			}
			return formatAmount(orchestrator.Bytes, c.Quota.DiskReserve)
		},
	}}
	for _, r := range orchestrator.Resources {
		kind := "int"
		if r.Unit == orchestrator.Bytes {
			kind = "size"
		}
		keys = append(keys, Key{
			Name: "tenant_" + r.Name, Env: "FIREBREAK_TENANT_" + strings.ToUpper(r.Name), Kind: kind,
			Doc:     "of each tenant: " + r.Doc + "; 0: no limit",
			Default: func(Source) string { return formatAmount(r.Unit, r.Default) },
			set: func(c *Config, v string) (err error) {
				*r.Field(&c.Quota.Tenant), err = parseAmount(r.Unit, v)
				return err
			},
			get: func(c *Config) string { return formatAmount(r.Unit, *r.Field(&c.Quota.Tenant)) },
		})
	}
	return append(keys, Key{
		Name: "tenants", Env: "FIREBREAK_TENANTS", Nested: true,
		Doc:     "tenants whose quotas differ, by name: {acme: {sandboxes: 50, memory: 8GiB}}; the keys are those above without tenant_",
		Default: func(Source) string { return "{}" },
		set:     func(c *Config, v string) (err error) { c.Quota.Tenants, err = parseTenants(v); return err },
		get:     func(c *Config) string { return formatTenants(c.Quota.Tenants) },
	})
}

// parseAmount reads how much of something there may be. 0 and none are no limit.
func parseAmount(u orchestrator.Unit, v string) (int64, error) {
	if v == none {
		return orchestrator.Unlimited, nil
	}
	if u == orchestrator.Bytes {
		n, err := sandbox.ParseSize(v)
		var e *sandbox.Error
		if errors.As(err, &e) {
			err = e.Err // the rest is said by whoever names the key
		}
		return n, err
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > 1<<31 {
		return 0, fmt.Errorf("%q is not a number from 0 (no limit) to %d", v, 1<<31)
	}
	return n, nil
}

func formatAmount(u orchestrator.Unit, n int64) string {
	switch {
	case n < 0:
		return none
	case u == orchestrator.Bytes && exact(n):
		return strings.ReplaceAll(sandbox.FormatSize(n), " ", "")
	}
	return strconv.FormatInt(n, 10)
}

// exact reports whether n's short form means n.
func exact(n int64) bool {
	back, err := sandbox.ParseSize(sandbox.FormatSize(n))
	return err == nil && back == n
}

// parseTenants reads {name: {resource: amount}}, strictly.
func parseTenants(text string) (map[sandbox.TenantID]orchestrator.TenantQuota, error) {
	var doc map[string]map[string]yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, errors.New("write {name: {sandboxes: 50, memory: 8GiB}}")
	}
	quotas := map[sandbox.TenantID]orchestrator.TenantQuota{}
	for name, values := range doc {
		if !sandbox.TenantID(name).Valid() {
			return nil, fmt.Errorf("%q cannot be a tenant's name", name)
		}
		var q orchestrator.TenantQuota
		for key, node := range values {
			i := slices.IndexFunc(orchestrator.Resources, func(r orchestrator.Resource) bool { return r.Name == key })
			if i < 0 {
				return nil, fmt.Errorf("%s: unknown key %q, not one of %s", name, key, resourceNames())
			}
			r := orchestrator.Resources[i]
			n, err := parseAmount(r.Unit, node.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", name, key, err)
			}
			*r.Field(&q) = n
		}
		quotas[sandbox.TenantID(name)] = q
	}
	return quotas, nil
}

func resourceNames() string {
	var names []string
	for _, r := range orchestrator.Resources {
		names = append(names, r.Name)
	}
	return strings.Join(names, ", ")
}

// formatTenants is the inverse of parseTenants, on one line.
func formatTenants(quotas map[sandbox.TenantID]orchestrator.TenantQuota) string {
	var tenants []string
	for _, name := range slices.Sorted(maps.Keys(quotas)) {
		var values []string
		q := quotas[name]
		for _, r := range orchestrator.Resources {
			if n := *r.Field(&q); n != 0 {
				values = append(values, r.Name+": "+formatAmount(r.Unit, n))
			}
		}
		tenants = append(tenants, fmt.Sprintf("%s: {%s}", name, strings.Join(values, ", ")))
	}
	return "{" + strings.Join(tenants, ", ") + "}"
}
