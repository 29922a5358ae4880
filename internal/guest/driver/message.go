package driver

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"
)

// Type says what a message is about.
type Type string

// The types.
const (
	Ready Type = "ready" // the driver reads commands
	Shown Type = "result"
	Fail  Type = "error"
	End   Type = "end" // of a turn
)

// Message is what a driver says.
type Message struct {
	Type Type
	Turn int // it belongs to
	// Result only.
	Result *Result
	// Error only.
	Error *Error
	// End only: how many turns have run code.
	Count int
}

// Error is an exception that ended a turn.
type Error struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback"` // lines as the language prints them
}

// Result is something a turn shows, in the forms it has. Empty ones it has not.
// Images and PDF are base64, JSON, Data and Chart JSON.
type Result struct {
	Main       bool            `json:"main,omitempty"` // the value of the turn's last expression
	Text       string          `json:"text,omitempty"`
	HTML       string          `json:"html,omitempty"`
	Markdown   string          `json:"markdown,omitempty"`
	SVG        string          `json:"svg,omitempty"`
	PNG        string          `json:"png,omitempty"`
	JPEG       string          `json:"jpeg,omitempty"`
	PDF        string          `json:"pdf,omitempty"`
	LaTeX      string          `json:"latex,omitempty"`
	JavaScript string          `json:"javascript,omitempty"`
	JSON       json.RawMessage `json:"json,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`  // a table: {column: values}
	Chart      json.RawMessage `json:"chart,omitempty"` // what a plotting library says of a figure
	// Extra are other forms, by media type.
	Extra map[string]string `json:"extra,omitempty"`
}

// TooLarge is shown in place of a result that was.
const TooLarge = "[this result was too large to be shown: at most 4 MiB]"

const (
	maxText  = 256 << 10 // of an error, each
	maxExtra = 32        // other media types
)

// wire is a message as drivers write it.
type wire struct {
	Type      Type                       `json:"type"`
	Turn      int                        `json:"turn"`
	Main      bool                       `json:"main"`
	Data      map[string]json.RawMessage `json:"data"`
	Name      string                     `json:"name"`
	Value     string                     `json:"value"`
	Traceback string                     `json:"traceback"`
	Count     int                        `json:"count"`
}

// Parse reads a message. What it does not understand is an error, and nothing
// but that: user code can write messages, too.
func Parse(text []byte) (Message, error) {
	var w wire
	if err := json.Unmarshal(text, &w); err != nil {
		return Message{}, err
	}
	m := Message{Type: w.Type, Turn: w.Turn}
	switch w.Type {
	case Ready:
	case End:
		m.Count = max(0, w.Count)
	case Fail:
		m.Error = &Error{Name: cut(w.Name), Value: cut(w.Value), Traceback: cut(w.Traceback)}
	case Shown:
		r, err := result(w.Data)
		if err != nil {
			return Message{}, err
		}
		r.Main = w.Main
		m.Result = r
	default:
		return Message{}, errors.New("a message of no known type")
	}
	return m, nil
}

// result sorts the forms of a result by what clients call them.
func result(forms map[string]json.RawMessage) (*Result, error) {
	r := &Result{}
	texts := map[string]*string{"text/plain": &r.Text, "text/html": &r.HTML, "text/markdown": &r.Markdown, "image/svg+xml": &r.SVG,
		"image/png": &r.PNG, "image/jpeg": &r.JPEG, "application/pdf": &r.PDF, "text/latex": &r.LaTeX, "application/javascript": &r.JavaScript}
	documents := map[string]*json.RawMessage{"application/json": &r.JSON, "firebreak/data": &r.Data, "firebreak/chart": &r.Chart,
		"e2b/data": &r.Data, "e2b/chart": &r.Chart}
	for kind, v := range forms {
		if to := documents[kind]; to != nil {
			if !bytes.Equal(v, []byte("null")) {
				*to = v
			}
			continue
		}
		var s string
		if err := json.Unmarshal(v, &s); err != nil { // some types are documents
			s = string(v)
		}
		if to := texts[kind]; to != nil {
			*to = s
		} else if len(kind) <= 128 && len(r.Extra) < maxExtra {
			if r.Extra == nil {
				r.Extra = map[string]string{}
			}
			r.Extra[kind] = s
		}
	}
	return r, nil
}

// cut bounds a text, keeping its end: that is where a traceback says what.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	s = s[len(s)-maxText:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return "…" + strings.ToValidUTF8(s, "\uFFFD")
}

// Encode writes a message as drivers do, for models of them.
func (m Message) Encode() []byte {
	w := wire{Type: m.Type, Turn: m.Turn, Count: m.Count}
	if m.Error != nil {
		w.Name, w.Value, w.Traceback = m.Error.Name, m.Error.Value, m.Error.Traceback
	}
	if m.Result != nil {
		text, _ := json.Marshal(m.Result.Text)
		w.Main, w.Data = m.Result.Main, map[string]json.RawMessage{"text/plain": text}
		if m.Result.JSON != nil {
			w.Data["application/json"] = m.Result.JSON
		}
	}
	b, err := json.Marshal(w)
	if err != nil {
		panic(err) // what is in it was JSON
	}
	return b
}
