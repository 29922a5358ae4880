package orchestrator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxResultDepth bounds the nesting of a structured result: what reads it later
// may recurse.
const maxResultDepth = 100

// checkResult decides whether b, which hostile code wrote, is one JSON value
// that every parser reads alike: valid UTF-8, no NaN or Infinity, nothing after
// it, no name twice in one object, not nested deeper than maxResultDepth. The
// error is fit to be shown to a person.
func checkResult(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("it is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := checkValue(d, 0); err != nil {
		return jsonError(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	if !json.Valid(b) { // Decoder.Token is lenient in corners
		return errors.New("it is not valid JSON")
	}
	return nil
}

func checkValue(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth++; depth > maxResultDepth {
		return fmt.Errorf("it is nested deeper than %d levels", maxResultDepth)
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			if seen[name] {
				return fmt.Errorf("the name %.64q appears twice in an object", name)
			}
			seen[name] = true
		}
		if err := checkValue(d, depth); err != nil {
			return err
		}
	}
	_, err = d.Token() // the closing one
	return err
}

func jsonError(err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it ends too early")
	case errors.As(err, &syntax):
		return fmt.Errorf("it is not valid JSON: %w at byte %d", err, syntax.Offset)
	}
	return err
}
