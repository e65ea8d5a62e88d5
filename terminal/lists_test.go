package terminal_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"claviger/terminal"
)

// Named is embedded in a shape.
type Named struct {
	Names []string `json:"names"`
}

// shape has each kind of field that a command's JSON has.
type shape struct {
	Named
	List     []string            `json:"list"`
	Map      map[string][]string `json:"map"`
	Omitted  []string            `json:"omitted,omitempty"`
	Zero     []string            `json:"zero,omitzero"`
	Bytes    []byte              `json:"bytes"`
	Absent   *shape              `json:"absent"`
	Inner    []shape             `json:"inner,omitempty"`
	Pointer  *Named              `json:"pointer,omitempty"`
	Any      any                 `json:"any"`
	Time     time.Time           `json:"time"`
	Raw      json.RawMessage     `json:"raw"`
	hidden   []string
	Excluded func() `json:"-"`
}

// asJSON returns what a command writes with -o json.
func asJSON(t *testing.T, v any) string {
	t.Helper()
	var b bytes.Buffer
	var out terminal.Output
	cmd := &cobra.Command{}
	cmd.SetOut(&b)
	out.Flag(cmd)
	if err := cmd.Flags().Set("output", "json"); err != nil {
		t.Fatal(err)
	}
	if err := out.Write(v, nil); err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b.Bytes()); err != nil {
		t.Fatal(err)
	}
	return compact.String()
}

// TestEmptyLists: a nil list is [] in JSON, and a nil map is {}, at any depth. Other nil values, also nil bytes, are
// null. The value itself does not change.
func TestEmptyLists(t *testing.T) {
	v := &shape{Inner: []shape{{}}, Pointer: &Named{}, Any: []Named{{}}, Map: map[string][]string{"k": nil}}
	inner := `{"names":[],"list":[],"map":{},"bytes":null,"absent":null,"any":null,` +
		`"time":"0001-01-01T00:00:00Z","raw":null}`
	want := `{"names":[],"list":[],"map":{"k":[]},"bytes":null,"absent":null,"inner":[` + inner +
		`],"pointer":{"names":[]},"any":[{"names":[]}],"time":"0001-01-01T00:00:00Z","raw":null}`
	if got := asJSON(t, v); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if v.List != nil || v.Pointer.Names != nil || v.Inner[0].List != nil || v.Map["k"] != nil || v.hidden != nil {
		t.Errorf("the value was changed: %+v", v)
	}
	for v, want := range map[any]string{nil: "null", "text": `"text"`, 7: "7"} {
		if got := asJSON(t, v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	if got := asJSON(t, []string(nil)); got != "[]" {
		t.Errorf("a nil slice is %s", got)
	}
}
