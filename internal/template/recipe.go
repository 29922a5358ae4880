package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"

	"github.com/firebreak-dev/firebreak/images"
)

// recipe says what a pack is made of; images/packs/README.md explains the keys.
type recipe struct {
	Description   string            `json:"description"`
	Base          string            `json:"base"`
	Languages     []string          `json:"languages"`
	Packages      []string          `json:"packages"`
	LeaveOut      []string          `json:"leave_out"`
	Trim          []string          `json:"trim"`
	Links         map[string]string `json:"links"`
	CompilePython []string          `json:"compile_python"`
	Env           map[string]string `json:"env"`
}

var rePackage = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{0,126}$`)

// loadRecipe reads a recipe and what it is based on. An error matches
// fs.ErrNotExist when there is none.
func loadRecipe(name string) (recipe, error) {
	b, err := images.Pack(name)
	if err != nil {
		return recipe{}, err
	}
	r, err := decodeRecipe(b)
	if err != nil || r.Base == "" {
		return r, err
	}
	base, err := loadRecipe(r.Base)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("recipe %s is based on %s, which does not exist", name, r.Base)
	}
	return r.over(base), err
}

func decodeRecipe(b []byte) (r recipe, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, err
	}
	for _, p := range r.Packages {
		if !rePackage.MatchString(p) {
			return r, fmt.Errorf("%q is not a package name", p)
		}
	}
	for _, l := range r.Languages {
		if !isLanguage(l) {
			return r, fmt.Errorf("unknown language %q", l)
		}
	}
	for _, p := range slices.Concat(r.LeaveOut, r.Trim, r.CompilePython) {
		if _, err := path.Match(p, ""); err != nil || !fs.ValidPath(p) {
			return r, fmt.Errorf("%q is not a clean relative pattern", p)
		}
	}
	return r, nil
}

// over returns r extended by what base says.
func (r recipe) over(base recipe) recipe {
	r.Packages = slices.Concat(base.Packages, r.Packages)
	r.LeaveOut = slices.Concat(base.LeaveOut, r.LeaveOut)
	r.Trim = slices.Concat(base.Trim, r.Trim)
	r.CompilePython = slices.Concat(base.CompilePython, r.CompilePython)
	r.Links = merged(base.Links, r.Links)
	r.Env = merged(base.Env, r.Env)
	return r
}

func merged(a, b map[string]string) map[string]string {
	m := map[string]string{}
	maps.Copy(m, a)
	maps.Copy(m, b)
	return m
}

// leavesOut reports whether a package is downloaded but not unpacked.
func (r recipe) leavesOut(name string) bool {
	return slices.ContainsFunc(r.LeaveOut, func(p string) bool { ok, _ := path.Match(p, name); return ok })
}
