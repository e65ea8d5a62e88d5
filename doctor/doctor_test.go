package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/terminal"
)

// check returns a check with these findings, which adds its ID to made.
func check(id string, made *[]string, findings []Finding, needs ...string) Check {
	return Check{ID: id, Title: "title of " + id, Why: "why " + id, Cure: "cure " + id, Needs: needs,
		Run: func(context.Context) []Finding {
			*made = append(*made, id)
			return findings
		}}
}

// roles returns one role with these groups.
func roles(groups ...Group) []Role {
	return []Role{{Name: "test",
		Groups: func(*Options) ([]Group, func() error, error) { return groups, func() error { return nil }, nil }}}
}

// report runs the checks and returns the text without its first two lines.
func report(t *testing.T, o Options, groups ...Group) (string, error) {
	t.Helper()
	var b bytes.Buffer
	o.Conf, o.Out = "/etc/x", *terminal.To(&b)
	err := Run(t.Context(), &o, roles(groups...), io.Discard)
	_, text, _ := strings.Cut(b.String(), "\n\n")
	return text, err
}

// TestDependencies: a check whose need failed or was skipped is not made, and says which check was the first. A warning
// keeps no check from being made.
func TestDependencies(t *testing.T) {
	var made []string
	text, err := report(t, Options{},
		Group{"one", []Check{
			check("D-a", &made, Warn("doubtful", "")),
			check("D-b", &made, Fail("broken\nin two lines", "mend it"), "D-a"),
			check("D-c", &made, Pass("never made"), "D-b"),
		}},
		Group{"two", []Check{
			check("D-d", &made, Pass("never made"), "D-c", "D-a"),
			check("D-e", &made, append(Skip("no part"), Pass("but another")...)),
			check("D-f", &made, Skip("not configured")),
		}},
		Group{"three", []Check{check("D-g", &made, Pass("never made"), "D-f")}})
	const want = `one: failure
  warning  D-a  doubtful
           cure: cure D-a
           why: why D-a
  failure  D-b  broken; in two lines
           cure: mend it
           why: why D-b
  skipped  D-c  D-b failed

two: ok
  skipped  D-d  D-b failed
  skipped  D-e  no part
  ok       D-e  but another
  skipped  D-f  not configured

three: skipped, because D-f was skipped

1 failure (D-b), 1 warning (D-a); passed: 1, skipped: 4
`
	if text != want {
		t.Errorf("%s\nwant\n%s", text, want)
	}
	if got := strings.Join(made, " "); got != "D-a D-b D-e D-f" {
		t.Errorf("made: %s", got)
	}
	if !errors.As(err, new(*claviger.RefusedError)) || err.Error() != "these checks failed: D-b" {
		t.Error(err)
	}
}

// TestOnly: --only makes the checks and all that they need, and no others.
func TestOnly(t *testing.T) {
	var made []string
	group := Group{"one", []Check{
		check("D-a", &made, Pass("a")), check("D-b", &made, Pass("b"), "D-a"), check("D-c", &made, Pass("c")),
		check("D-d", &made, Pass("d"), "D-b"),
	}}
	if _, err := report(t, Options{Only: []string{"D-d"}}, group); err != nil {
		t.Error(err)
	}
	if got := strings.Join(made, " "); got != "D-a D-b D-d" {
		t.Errorf("made: %s", got)
	}
	_, err := report(t, Options{Only: []string{"D-dd"}}, group)
	if !errors.As(err, new(*terminal.UsageError)) {
		t.Error(err)
	}
}

// TestAfter: a check is made after another one, also if that has failed, and with --only.
func TestAfter(t *testing.T) {
	var made []string
	last := check("D-c", &made, Pass("c"))
	last.After = []string{"D-a"}
	group := Group{"one", []Check{check("D-a", &made, Fail("a", "")), check("D-b", &made, Pass("b")), last}}
	if _, err := report(t, Options{Only: []string{"D-c"}}, group); err == nil {
		t.Error("no error")
	}
	if got := strings.Join(made, " "); got != "D-a D-c" {
		t.Errorf("made: %s", got)
	}
}

// TestVerdict: warnings count only if --fail-on says so.
func TestVerdict(t *testing.T) {
	var made []string
	group := Group{"one", []Check{check("D-a", &made, Warn("w", "c"))}}
	if _, err := report(t, Options{}, group); err != nil {
		t.Error(err)
	}
	if _, err := report(t, Options{FailOn: "warning"}, group); !errors.As(err, new(*claviger.RefusedError)) {
		t.Error(err)
	}
}

// TestJSON: the JSON has each check that was selected, also after a failure, with the reason of a skipped one.
func TestJSON(t *testing.T) {
	var made []string
	groups := []Group{{"one", []Check{check("D-a", &made, Fail("a", "mend a"))}},
		{"two", []Check{check("D-b", &made, Pass("b"), "D-a")}}}
	var o Options
	var b bytes.Buffer
	cmd := &cobra.Command{Use: "doctor", SilenceUsage: true, SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return Run(c.Context(), &o, roles(groups...), io.Discard)
		}}
	o.Define(cmd, roles(groups...))
	cmd.SetOut(&b)
	cmd.SetErr(io.Discard)
	cmd.SetArgs([]string{"--conf", "/etc/x", "-o", "json"})
	if err := cmd.ExecuteContext(t.Context()); !errors.As(err, new(*claviger.RefusedError)) {
		t.Error(err)
	}
	var r Report
	if err := json.Unmarshal(b.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, b.String())
	}
	a, skipped := r.Groups[0].Checks[0], r.Groups[1].Checks[0]
	if r.Format != "claviger doctor 1" || r.Role != "test" || r.Conf != "/etc/x" || r.User == "" || r.At.IsZero() ||
		r.Status != Failure || a.ID != "D-a" || a.Status != Failure || a.Why != "why D-a" ||
		a.Findings[0] != (Finding{Failure, "a", "mend a"}) || skipped.Status != Skipped || skipped.Why != "" ||
		skipped.Findings[0] != (Finding{Status: Skipped, Measured: "D-a failed"}) {
		t.Errorf("%s", b.String())
	}
}

// TestInterrupted: a run that was interrupted has no result.
func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	group := Group{"one", []Check{{ID: "D-a", Run: func(context.Context) []Finding { stop(); return Pass("a") }}}}
	var b bytes.Buffer
	err := Run(ctx, &Options{Conf: "/etc/x", Out: *terminal.To(&b)}, roles(group), io.Discard)
	if !errors.Is(err, context.Canceled) || b.Len() > 0 {
		t.Errorf("%v, %s", err, b.String())
	}
}

// TestMistakes: two checks with one ID, and a need that is not made before, are mistakes in the program.
func TestMistakes(t *testing.T) {
	var made []string
	for _, checks := range [][]Check{
		{check("D-a", &made, nil), check("D-a", &made, nil)},
		{check("D-a", &made, nil, "D-b"), check("D-b", &made, nil)},
		{check("D-a", &made, nil, "D-a")},
	} {
		func() {
			defer func() {
				if text := fmt.Sprint(recover()); !strings.Contains(text, "D-a") {
					t.Errorf("%s", text)
				}
			}()
			validate([]Group{{"one", checks}})
		}()
	}
}

// TestEscaped: a text that another host has sent does not change a terminal.
func TestEscaped(t *testing.T) {
	if got, want := oneLine("a\x1b[2J\r\nb\u202e\tc"), `a\u001b[2J; b\u202e\tc`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
