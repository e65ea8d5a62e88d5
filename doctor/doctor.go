// Package doctor runs the checks of `claviger doctor` and shows their results: a list of groups of checks, each with an
// ID that stays the same in all versions. Other packages make the checks; this one knows only their order, their
// dependencies and their output.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/secret"
)

// Status is the result of a check.
type Status string

// The results, the least severe first. A check is skipped if what it needs is not there, or if a check before it has
// failed.
const (
	Skipped Status = "skipped"
	OK      Status = "ok"
	Warning Status = "warning"
	Failure Status = "failure"
)

// severities are the results, the least severe first.
var severities = []Status{Skipped, OK, Warning, Failure}

// worst returns the more severe of two results.
func worst(a, b Status) Status {
	if slices.Index(severities, a) < slices.Index(severities, b) {
		return b
	}
	return a
}

// Finding is one measured fact. A skipped finding has the reason in Measured.
type Finding struct {
	Status   Status `json:"status"`
	Measured string `json:"measured"`
	Cure     string `json:"cure,omitempty"` // what to do about a warning or failure
}

// Pass returns one finding with the status OK.
func Pass(format string, args ...any) []Finding {
	return []Finding{{Status: OK, Measured: fmt.Sprintf(format, args...)}}
}

// Skip returns one skipped finding, with the reason.
func Skip(format string, args ...any) []Finding {
	return []Finding{{Status: Skipped, Measured: fmt.Sprintf(format, args...)}}
}

// Warn returns one finding with the status Warning.
func Warn(measured, cure string) []Finding { return []Finding{{Warning, measured, cure}} }

// Fail returns one finding with the status Failure.
func Fail(measured, cure string) []Finding { return []Finding{{Failure, measured, cure}} }

// Error returns one failure with the text of an error. If the system has refused a right to this process, the cure is
// the command that grants it.
func Error(err error, cure string) []Finding {
	if errors.Is(err, fs.ErrPermission) {
		if remedy := secret.Admit(err); remedy != "" {
			cure = remedy
		}
	}
	return Fail(err.Error(), cure)
}

// WithCure returns a finding for a text of the form "fault; cure: command".
func WithCure(status Status, text string) Finding {
	measured, cure, _ := strings.Cut(text, "; cure: ")
	return Finding{Status: status, Measured: measured, Cure: cure}
}

// Exposed returns a failure for each way in which other users could read or change files with secrets of a service that
// runs as u.
func Exposed(u secret.User, files []secret.File) []Finding {
	var list []Finding
	for _, fault := range u.Exposed(files...) {
		list = append(list, WithCure(Failure, fault))
	}
	if len(list) > 0 {
		return list
	}
	there := 0
	for _, f := range files {
		if _, err := os.Stat(f.Path); err == nil {
			there++
		}
	}
	return Pass("users other than %s may not read or change them (%d files)", u.Name, there)
}

// Check is one question. The texts are also those of docs/doctor.md and of --explain.
type Check struct {
	ID       string // D-hsm-login
	Title    string // "login to the token"
	Measures string // how the check is made: a sentence
	Why      string // why it matters: a sentence
	Cure     string // what to do in general; a finding may have a better cure for its case
	// Needs are the IDs of checks that are made before. If one of them fails or is skipped, this check is skipped.
	Needs []string
	// After are the IDs of checks that are made before, whatever their results are.
	After []string
	// Run makes the check. It changes nothing. It returns at least one finding, and returns soon after ctx ends.
	Run func(ctx context.Context) []Finding
}

// before returns the IDs of the checks that must be made before.
func (c *Check) before() []string { return slices.Concat(c.Needs, c.After) }

// Group is a list of checks about one part of a service.
type Group struct {
	Title  string
	Checks []Check
}

// checkLimit is how long one check may take. Each step within a check has a limit of its own, which is shorter.
const checkLimit = time.Minute

// Result is the result of one check.
type Result struct {
	ID       string    `json:"id"`
	Title    string    `json:"title"`
	Status   Status    `json:"status"` // the worst of the findings
	Findings []Finding `json:"findings"`
	Why      string    `json:"why,omitempty"` // of a warning or failure
	Seconds  float64   `json:"seconds"`

	cause string // of a check that was not made: which check before it failed or was skipped
}

// GroupResult has the results of a group.
type GroupResult struct {
	Title  string   `json:"title"`
	Status Status   `json:"status"` // the worst of the checks
	Checks []Result `json:"checks"`
}

// Report is the result of all checks that were made.
type Report struct {
	Format string        `json:"format"` // "claviger doctor 1"
	Role   string        `json:"role"`
	Conf   string        `json:"conf"` // the configuration folder
	User   string        `json:"user"` // the user that the service runs as
	At     time.Time     `json:"at"`
	Status Status        `json:"status"` // the worst of the groups
	Groups []GroupResult `json:"groups"`
}

// IDs returns the IDs of the checks with this status, in the order of the report.
func (r *Report) IDs(s Status) (ids []string) {
	for _, g := range r.Groups {
		for _, c := range g.Checks {
			if c.Status == s {
				ids = append(ids, c.ID)
			}
		}
	}
	return ids
}

// validate panics if two checks have one ID, or if a check needs a check that is not made before it: that is a mistake
// in the program.
func validate(groups []Group) {
	seen := map[string]bool{}
	for _, g := range groups {
		for _, c := range g.Checks {
			if seen[c.ID] {
				panic("doctor: two checks have the ID " + c.ID)
			}
			for _, need := range c.before() {
				if !seen[need] {
					panic("doctor: " + c.ID + " comes after " + need + ", which is not made before it")
				}
			}
			seen[c.ID] = true
		}
	}
}

// selectChecks returns the groups with only these checks, and those that come before them (Needs and After). Without
// IDs, it returns all groups.
func selectChecks(groups []Group, ids []string) []Group {
	if len(ids) == 0 {
		return groups
	}
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	for _, g := range slices.Backward(groups) { // a check only needs checks before it
		for _, c := range slices.Backward(g.Checks) {
			if wanted[c.ID] {
				for _, need := range c.before() {
					wanted[need] = true
				}
			}
		}
	}
	var selected []Group
	for _, g := range groups {
		kept := Group{Title: g.Title}
		for _, c := range g.Checks {
			if wanted[c.ID] {
				kept.Checks = append(kept.Checks, c)
			}
		}
		if len(kept.Checks) > 0 {
			selected = append(selected, kept)
		}
	}
	return selected
}

// run makes the checks, one after another. progress is called before each check. If ctx ends, run returns the error of
// ctx, because the checks that were not made prove nothing.
func run(ctx context.Context, groups []Group, progress func(done, total int, title string)) ([]GroupResult, Status,
	error) {
	total, done := 0, 0
	for _, g := range groups {
		total += len(g.Checks)
	}
	all := Skipped
	results := make(map[string]Result, total)
	list := make([]GroupResult, 0, len(groups))
	for _, g := range groups {
		group := GroupResult{Title: g.Title, Status: Skipped}
		for _, c := range g.Checks {
			progress(done, total, c.Title)
			r := c.result(ctx, results)
			if ctx.Err() != nil {
				return nil, all, ctx.Err()
			}
			done++
			results[c.ID] = r
			group.Checks, group.Status = append(group.Checks, r), worst(group.Status, r.Status)
		}
		list, all = append(list, group), worst(all, group.Status)
	}
	progress(done, total, "done")
	return list, all, nil
}

// result makes one check, unless a check that it needs did not pass.
func (c *Check) result(ctx context.Context, before map[string]Result) Result {
	r := Result{ID: c.ID, Title: c.Title, Status: Skipped}
	for _, need := range c.Needs {
		switch b := before[need]; {
		case b.cause != "":
			r.cause = b.cause
		case b.Status == Failure:
			r.cause = need + " failed"
		case b.Status == Skipped:
			r.cause = need + " was skipped"
		default:
			continue
		}
		r.Findings = Skip("%s", r.cause)
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	began := time.Now()
	r.Findings = c.Run(ctx)
	r.Seconds = time.Since(began).Round(time.Millisecond).Seconds()
	for i := range r.Findings {
		f := &r.Findings[i]
		f.Measured, f.Cure = oneLine(f.Measured), oneLine(f.Cure)
		if f.Cure == "" && (f.Status == Warning || f.Status == Failure) {
			f.Cure = c.Cure
		}
		r.Status = worst(r.Status, f.Status)
	}
	if r.Status == Warning || r.Status == Failure {
		r.Why = c.Why
	}
	return r
}

// oneLine joins the lines of a text, as those of several errors. Other hosts wrote parts of such texts, so characters
// that move a terminal's cursor or mislead a reader are escaped.
func oneLine(text string) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' })
	return claviger.Escape(strings.Join(lines, "; "), "")
}

// verdict returns the error of a report: nil, or a claviger.RefusedError if a check failed. With strict, a warning
// counts as a failure.
func (r *Report) verdict(strict bool) error {
	failed, warned := r.IDs(Failure), r.IDs(Warning)
	switch {
	case len(failed) > 0:
		return &claviger.RefusedError{Err: errors.New("these checks failed: " + strings.Join(failed, ", "))}
	case strict && len(warned) > 0:
		return &claviger.RefusedError{Err: errors.New("these checks have warnings: " + strings.Join(warned, ", "))}
	}
	return nil
}
