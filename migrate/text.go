package migrate

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"claviger"
)

// report writes text and keeps the first error.
type report struct {
	w   io.Writer
	err error
}

func (r *report) line(format string, args ...any) {
	if r.err == nil {
		_, r.err = fmt.Fprintf(r.w, format+"\n", args...)
	}
}

// table writes rows in aligned columns; cells past the header's are indented
// lines of their own.
func (r *report) table(header []string, rows [][]string, after func(i int) []string) {
	if r.err != nil {
		return
	}
	var buf strings.Builder
	t := tabwriter.NewWriter(&buf, 0, 0, 2, ' ', 0)
	write := func(cells []string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) } // a strings.Builder takes all
	write(header)
	for _, row := range rows {
		write(row)
	}
	_ = t.Flush()
	for i, l := range strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n") {
		r.line("%s", strings.TrimRight(l, " "))
		if i > 0 && after != nil {
			for _, s := range after(i - 1) {
				r.line("    %s", s)
			}
		}
	}
}

func some(s ...string) []string {
	var out []string
	for _, x := range s {
		if x != "" {
			out = append(out, x)
		}
	}
	return out
}

func (r *report) checks(checks []Check) {
	for _, c := range checks {
		r.line("  %-9s  %s: %s", c.Status, c.Name, c.Measured)
		if c.Cure != "" {
			r.line("             -> %s", c.Cure)
		}
	}
}

func (r *report) keys(keys []KeyLine) {
	if len(keys) == 0 {
		r.line("The source has no keys.")
		return
	}
	var rows [][]string
	for _, k := range keys {
		row := []string{claviger.Printable(k.Key), string(k.State), "", "", "", ""}
		if s := k.Source; s != nil {
			row[2], row[3], row[4], row[5] = strconv.Itoa(k.Versions), claviger.Printable(s.Cipher), strconv.Itoa(s.Length), s.Created.Format(time.DateTime)
		}
		rows = append(rows, row)
	}
	r.table([]string{"KEY", "STATE", "VERSIONS", "CIPHER", "BITS", "CREATED (UTC)"}, rows, func(i int) []string { return some(keys[i].Why) })
}

// WriteText writes the plan for people.
func (p *Plan) WriteText(w io.Writer) error {
	r := &report{w: w}
	r.line("Migration plan, %s. Nothing has been changed.", p.At.Format(time.RFC3339))
	r.line("  from  %s", p.Source)
	r.line("  to    %s", p.Target)
	r.line("")
	r.line("Checks")
	r.checks(p.Checks)
	r.line("")
	if !p.Read {
		r.line("Not ready: the source's keys were not read, so which it has is not known.")
		return r.err
	}
	r.keys(p.Keys)
	r.line("")
	r.line("%d keys: %d to import (%d new versions), %d done, %d that cannot be imported.", p.Counts.Total, p.Counts.Planned, p.Counts.NewVersions, p.Counts.Done, p.Counts.Blocked)
	if n := len(p.OnlyTarget); n > 0 {
		r.line("%d keys are at the target only, and stay as they are.", n)
	}
	if p.Complete {
		r.line("The migration is complete: every key of the source is here, and a run would do nothing. Next: claviger migrate verify, re-encrypt the zones, claviger migrate finish.")
	}
	switch {
	case p.Ready():
	case p.Complete:
		r.line("What the cut-over needs is not proved by this plan: see the failures, and what was not tried.")
	default:
		r.line("Not ready: see the failures, what was not tried, and the keys that cannot be imported.")
	}
	return r.err
}

// WriteText writes the result for people.
func (r *Result) WriteText(w io.Writer) error {
	t := &report{w: w}
	t.line("Migration %s: %s", r.Run.Name, r.Run.State)
	t.line("  from  %s", r.Run.Source)
	t.line("  to    %s", r.Run.Target)
	t.line("")
	t.keys(r.Keys)
	t.line("")
	if n := r.Counts.Blocked; !r.Changed && n > 0 {
		t.line("%d keys: %d done, %d that could not be imported or are in conflict; nothing was changed.",
			r.Counts.Total, r.Counts.Done, n)
		return t.err
	}
	if !r.Changed {
		t.line("%d keys; nothing was left to do.", r.Counts.Total)
		return t.err
	}
	t.line("%d keys: %d done (%d new versions), %d that could not be imported; took %s.", r.Counts.Total, r.Counts.Done, r.Counts.NewVersions, r.Counts.Blocked+r.Counts.Planned, r.Took)
	return t.err
}

// WriteText writes the standing for people.
func (s *Standing) WriteText(w io.Writer) error {
	r := &report{w: w}
	if len(s.Runs) == 0 {
		r.line("Nothing was migrated into this metastore yet.")
	} else {
		var rows [][]string
		for _, run := range s.Runs {
			ended := ""
			if run.Ended != nil {
				ended = run.Ended.Format(time.DateTime)
			}
			rows = append(rows, []string{run.Name, string(run.State), run.Started.Format(time.DateTime), ended, strconv.Itoa(run.Resumed), run.Host, run.Source})
		}
		r.table([]string{"RUN", "STATE", "STARTED (UTC)", "ENDED", "RESUMED", "ON", "SOURCE"}, rows, nil)
	}
	if len(s.Keys) > 0 {
		r.line("")
		var rows [][]string
		var why []string
		for _, k := range s.Keys {
			for i, m := range k.Versions {
				row := []string{"", "", orDash(m.Source, "not shown"), orDash(m.Target, "-"), "never", strconv.FormatInt(m.Decrypted, 10), strconv.FormatInt(m.Reencrypted, 10)}
				if m.LastUse != nil {
					row[4] = m.LastUse.UTC().Format(time.DateTime)
				}
				if i == 0 {
					row[0], row[1] = claviger.Printable(k.Key), string(k.State)
				}
				rows, why = append(rows, row), append(why, "")
			}
			if len(k.Versions) == 0 {
				rows, why = append(rows, []string{claviger.Printable(k.Key), string(k.State), "", "", "", "", ""}), append(why, "")
			}
			why[len(why)-1] = k.Why
			if n := k.unserved(); n > 0 {
				why[len(why)-1] = strings.TrimPrefix(fmt.Sprintf("%s; %d EDEKs of the source could not be opened, since it was not configured", k.Why, n), "; ")
			}
		}
		r.table([]string{"KEY", "STATE", "VERSION AT THE SOURCE", "VERSION HERE", "LAST USE OF THE SOURCE'S", "DECRYPTED", "RE-ENCRYPTED"}, rows, func(i int) []string { return some(why[i]) })
		r.line("")
		r.line("%d keys: %s, %d under way, %d that could not be imported.", s.Counts.Total, s.Counts.done(), s.Counts.Planned, s.Counts.Blocked)
	}
	for _, c := range s.Conflicts {
		r.line("%s is one key here and another one at %s: %s.", claviger.Printable(c.Version), c.Source, c.Why)
	}
	for _, f := range s.Freed {
		r.line("The name %s was freed at %s by %s on %s.", claviger.Printable(f.Key), f.At.UTC().Format(time.RFC3339), f.User, f.Host)
	}
	if s.LastUse != nil {
		r.line("The source was last needed at %s.", s.LastUse.UTC().Format(time.RFC3339))
	} else if len(s.Keys) > 0 {
		r.line("No version of the source has been needed yet.")
	}
	return r.err
}

// done says how many keys are done, and how many of them cannot be used.
func (c *Counts) done() string {
	text := fmt.Sprintf("%d done", c.Done)
	if c.Deleted > 0 {
		text += fmt.Sprintf(" (%d of them deleted here since)", c.Deleted)
	}
	if c.Lost > 0 {
		text += fmt.Sprintf(", %d given up", c.Lost)
	}
	if c.Freed > 0 {
		text += fmt.Sprintf(", %d deleted here and freed", c.Freed)
	}
	return text
}

// unserved counts EDEKs of the key that were to be opened while the source was not
// configured.
func (k *KeyStanding) unserved() (n int64) {
	for _, m := range k.Versions {
		n += m.Unserved
	}
	return n
}

func orDash(s, none string) string {
	if s == "" {
		return none
	}
	return claviger.Printable(s)
}

// WriteText writes the verification for people.
func (v *Verification) WriteText(w io.Writer) error {
	r := &report{w: w}
	r.line("Comparison of all metadata, %s", v.At.Format(time.RFC3339))
	r.line("  source  %s", v.Source)
	r.line("  target  %s", v.Target)
	r.line("")
	if len(v.Keys) > 0 {
		var rows [][]string
		for _, k := range v.Keys {
			same := "same"
			if !k.Same {
				same = "DIFFERENT"
			}
			rows = append(rows, []string{claviger.Printable(k.Key), same})
		}
		r.table([]string{"KEY", ""}, rows, func(i int) []string {
			var lines []string
			for _, d := range v.Keys[i].Differences {
				lines = append(lines, fmt.Sprintf("%s: %s at the source, %s here", d.Field, d.Source, d.Target))
			}
			return append(lines, v.Keys[i].Remarks...)
		})
		r.line("")
	}
	if v.Empty() {
		r.line("Nothing was compared, since the source lists no key: see that %s names the right KMS, and that this "+
			"server may list its keys.", propSource)
	} else {
		r.line("%d keys the same, %d different.", v.Same, v.Different)
	}
	if n := len(v.OnlyTarget); n > 0 {
		r.line("%d keys are at the target only: made here, or deleted at the source, since.", n)
	}
	return r.err
}

// WriteText writes the ending for people.
func (f *Ending) WriteText(w io.Writer) error {
	r := &report{w: w}
	for _, s := range f.Remarks {
		r.line("Remark: %s", s)
	}
	if len(f.Refusals) > 0 {
		r.line("The source is still needed:")
		for _, s := range f.Refusals {
			r.line("  - %s", s)
		}
		return r.err
	}
	here := "every key is here and can be used"
	if n := len(f.Deleted); n > 0 {
		here = fmt.Sprintf("every key is here and can be used but for %d that were deleted here", n)
	}
	r.line("No version of the source was used since %s, %s, and you say that the EDEKs of all zones are re-encrypted.", f.Since.Format(time.RFC3339), here)
	if f.Compared != nil {
		r.line("The source had no other keys when it was last asked, at %s. A roll there after that is not known here.",
			f.Compared.UTC().Format(time.RFC3339))
	} else {
		r.line("The source was not asked, since the run, whether it has other keys.")
	}
	if len(f.Deleted) > 0 {
		r.line("")
		r.line("These keys were migrated and have been deleted here since. What they encrypted opens nowhere once the source has gone; if that is not meant: claviger key undelete.")
		for _, key := range f.Deleted {
			r.line("  - %s", claviger.Printable(key))
		}
	}
	r.line("")
	r.line("The re-encryption of zones does not reach these. What of them has a key version of the source cannot be read once the source has gone:")
	for _, s := range f.NotReached {
		r.line("  - %s", s)
	}
	if len(f.Properties) > 0 {
		r.line("")
		r.line("In kms-site.xml of every node:")
		var rows [][]string
		for _, p := range f.Properties {
			done := "done"
			if !p.Done {
				done = "TO DO"
			}
			rows = append(rows, []string{"  " + done, p.Name, p.Want, printableOrNothing(p.Value)})
		}
		r.table([]string{"", "PROPERTY", "WANTED", "IS"}, rows, func(i int) []string {
			if p := f.Properties[i]; !p.Done {
				return some(p.Where)
			}
			return nil
		})
	}
	r.leftovers(f.Leftovers)
	r.line("")
	switch {
	case f.Finished && f.anySecret():
		r.line("The migration is finished. The source can be stopped; keep its backup as long as backups of HDFS hold EDEKs of it. Copies of its secrets are still on this host: see above.")
	case f.Finished:
		r.line("The migration is finished. The source can be stopped; keep its backup as long as backups of HDFS hold EDEKs of it.")
	default:
		r.line("Change what is to do, restart the nodes one after the other, then run this command again.")
	}
	return r.err
}

// leftovers lists what the procedure has left on this host.
func (r *report) leftovers(list []Leftover) {
	if len(list) == 0 {
		return
	}
	r.line("")
	r.line("On this host, of the procedure (look at the others too):")
	for _, l := range list {
		state := "there"
		if l.Shredded {
			state = "shredded"
		}
		r.line("  %-8s  %s", state, claviger.Printable(l.Path))
		r.line("            %s", l.What)
		if l.Secret && !l.Shredded && len(l.Left) == 0 {
			r.line("            -> claviger migrate finish --shred, once all else is done")
		}
		for _, s := range l.Left {
			r.line("            left: %s", s)
		}
	}
}

// anySecret: a copy of a secret is still there.
func (f *Ending) anySecret() bool {
	return slices.ContainsFunc(f.Leftovers, func(l Leftover) bool { return l.Secret && !l.Shredded })
}

func printableOrNothing(s string) string {
	if s == "" {
		return "not set"
	}
	return claviger.Printable(s)
}
