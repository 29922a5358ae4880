package broker

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
)

const canary = "canary-5d1c77-plain"

// holder has a secret in every way that a struct can.
type holder struct {
	Exported *Secret
	hidden   *Secret
	list     []*Secret
	Any      any
}

func newHolder() holder {
	s := NewSecret([]byte(canary))
	return holder{Exported: s, hidden: s, list: []*Secret{s}, Any: s}
}

// TestSecretIsNeverPrinted: in no format, by itself or in something else, by value
// or by pointer.
func TestSecretIsNeverPrinted(t *testing.T) {
	h := newHolder()
	values := map[string]any{"secret": h.Exported, "holder": h, "pointer": &h, "map": map[string]any{"k": h.Exported}, "slice": []any{h.Exported, h},
		"reflect": reflect.ValueOf(h.Exported).Elem(), "error": fmt.Errorf("wrapped: %v", h.Exported)}
	for name, v := range values {
		for verb := ' ' + 1; verb < 0x7f; verb++ {
			if verb == '*' || verb >= '0' && verb <= '9' || strings.ContainsRune("+-# .[", verb) {
				continue
			}
			for _, flags := range []string{"", "+", "#", "-", "0", " ", "40.3", "+#"} {
				if out := fmt.Sprintf("%"+flags+string(verb), v); leaks(out) {
					t.Errorf("%s with %%%s%c: %s", name, flags, verb, out)
				}
			}
		}
		if out := fmt.Sprint(v) + fmt.Sprintln(v); leaks(out) {
			t.Errorf("%s: %s", name, out)
		}
	}
	if got := fmt.Sprintf("%v %s %q %x %d %#v", h.Exported, h.Exported, h.Exported, h.Exported, h.Exported, h.Exported); got != strings.Repeat(redacted+" ", 5)+redacted {
		t.Error(got)
	}
}

// leaks looks for the canary as text, hexadecimal and a list of numbers.
func leaks(s string) bool {
	numbers := strings.Trim(fmt.Sprint([]byte(canary[:6])), "[]")
	hex := fmt.Sprintf("%x", canary[:6])
	s = strings.ToLower(s)
	return strings.Contains(s, canary[:6]) || strings.Contains(s, numbers) || strings.Contains(s, hex) ||
		strings.Contains(s, strings.ToLower(strings.Trim(fmt.Sprintf("%#v", []byte(canary[:6])), "[]byte{}")))
}

// TestSecretIsNeverMarshalled: an encoder gets an error, or nothing.
func TestSecretIsNeverMarshalled(t *testing.T) {
	h := newHolder()
	if b, err := json.Marshal(h.Exported); err == nil {
		t.Errorf("json: %s", b)
	}
	if b, err := json.Marshal(h); err == nil {
		t.Errorf("json of a holder: %s", b)
	}
	if b, err := json.Marshal(reflect.ValueOf(h.Exported).Elem().Addr().Interface()); err == nil {
		t.Errorf("json: %s", b)
	}
	if b, err := xml.Marshal(h.Exported); err == nil {
		t.Errorf("xml: %s", b)
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(h.Exported); err == nil || leaks(buf.String()) {
		t.Errorf("gob: %v, %q", err, &buf)
	}
	for _, f := range []func() ([]byte, error){h.Exported.MarshalText, h.Exported.MarshalBinary, h.Exported.MarshalJSON} {
		if b, err := f(); err == nil || len(b) > 0 {
			t.Errorf("%q, %v", b, err)
		}
	}
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		l := slog.New(handler).With("s", h.Exported)
		l.Info("said", "s", h.Exported, "h", h, "p", &h, "any", slog.AnyValue(h.Exported), slog.Group("g", "s", h.Exported))
		l.Info(h.Exported.String())
	}
	if leaks(log.String()) || !strings.Contains(log.String(), redacted) {
		t.Error(log.String())
	}
}

// TestSecretIsNotWalkedTo: whatever follows pointers, fields and elements, exported
// or not, finds no bytes.
func TestSecretIsNotWalkedTo(t *testing.T) {
	h := newHolder()
	steps := 0
	var walk func(v reflect.Value, depth int)
	walk = func(v reflect.Value, depth int) {
		if steps++; depth > 12 || !v.IsValid() {
			return
		}
		switch v.Kind() {
		case reflect.Pointer, reflect.Interface:
			walk(v.Elem(), depth+1)
		case reflect.Struct:
			for i := range v.NumField() {
				walk(v.Field(i), depth+1)
			}
		case reflect.Slice, reflect.Array:
			if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 && leaks(string(v.Bytes())) {
				t.Error("the bytes were found")
			}
			for i := range v.Len() {
				walk(v.Index(i), depth+1)
			}
		case reflect.Map:
			for _, k := range v.MapKeys() {
				walk(k, depth+1)
				walk(v.MapIndex(k), depth+1)
			}
		case reflect.String:
			if leaks(v.String()) {
				t.Error("a string holds them")
			}
		}
	}
	walk(reflect.ValueOf(&h), 0)
	if steps < 10 {
		t.Errorf("%d steps", steps)
	}
	if reflect.DeepEqual(NewSecret([]byte("a")), NewSecret([]byte("a"))) {
		t.Error("two can be compared")
	}
}

func TestDestroy(t *testing.T) {
	b := []byte(canary)
	s := NewSecret(b)
	s.Use(func(got []byte) {
		if string(got) != canary {
			t.Errorf("%q", got)
		}
	})
	s.Destroy()
	s.Destroy()
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Errorf("%q is left", b)
	}
	for _, s := range []*Secret{s, {}} {
		s.Use(func(got []byte) {
			if got != nil {
				t.Errorf("%q", got)
			}
		})
	}
}
