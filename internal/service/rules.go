package service

import (
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Rules are what the proto says about each message. A surface checks every
// request against them before it calls the Service, which does not again.
type Rules struct{ validator protovalidate.Validator }

// NewRules compiles the rules.
func NewRules() (*Rules, error) {
	v, err := protovalidate.New()
	return &Rules{v}, err
}

// Check refuses m if it breaks a rule, saying which. Errors: KindInvalid.
func (r *Rules) Check(m proto.Message) error {
	err := r.validator.Validate(m)
	if err == nil {
		return nil
	}
	var ve *protovalidate.ValidationError
	if !errors.As(err, &ve) || len(ve.Violations) == 0 {
		return err // a rule that does not compile: ours to mend
	}
	var parts []string
	for _, violation := range ve.Violations {
		said := violation.Proto.GetMessage()
		if said == "" {
			said = "does not satisfy " + violation.Proto.GetRuleId()
		}
		if path := protovalidate.FieldPathString(violation.Proto.GetField()); path != "" {
			said = path + ": " + said
		}
		if len(parts) == 3 {
			parts = append(parts, fmt.Sprintf("and %d more", len(ve.Violations)-3))
			break
		}
		parts = append(parts, text(said[:min(len(said), 300)]))
	}
	hint := "/openapi.json describes what each route takes"
	if len(ve.Violations) == 1 && ve.Violations[0].Proto.GetRuleId() == "string.max_len" {
		hint = "choose a shorter one: " + hint
	}
	return sandbox.Errorf("read request", sandbox.KindInvalid, "%s", strings.Join(parts, "; ")).WithHint("%s", hint)
}
