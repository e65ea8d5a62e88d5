// Package report writes what the migration engine found as text. Programs read the same findings
// as JSON, whose fields are those of the types of package migrate.
package report

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/shellword"
)

// lines writes lines. The writer keeps its errors: it is a buffer, or terminal.Output's.
type lines struct{ w io.Writer }

// line writes one line. A name, or an error's text from the source, may hold line ends; they are escaped.
func (l lines) line(format string, args ...any) {
	fmt.Fprintln(l.w, claviger.Escape(fmt.Sprintf(format, args...), "\t"))
}

// table writes rows in aligned columns. Under row i it writes the lines of after(i), indented.
func (l lines) table(header []string, rows [][]string, after func(i int) []string) {
	var buf strings.Builder
	t := tabwriter.NewWriter(&buf, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	_ = t.Flush() // a strings.Builder returns no errors
	for i, s := range strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n") {
		l.line("%s", strings.TrimRight(s, " "))
		if i > 0 && after != nil {
			for _, s := range after(i - 1) {
				l.line("    %s", s)
			}
		}
	}
}

// nonEmpty returns a list of s, or nil if s is empty.
func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// shown returns a readable name, or none if the name is empty.
func shown(s, none string) string {
	if s == "" {
		return none
	}
	return claviger.Printable(s)
}

func (l lines) checks(checks []migrate.Check) {
	for _, c := range checks {
		l.line("  %-9s  %s: %s", c.Status, c.Name, c.Measured)
		if c.Cure != "" {
			l.line("             -> %s", c.Cure)
		}
	}
}

func (l lines) keys(keys []migrate.KeyLine) {
	if len(keys) == 0 {
		l.line("The source has no keys.")
		return
	}
	var rows [][]string
	for _, k := range keys {
		row := []string{claviger.Printable(k.Key), string(k.State), "", "", "", ""}
		if s := k.Source; s != nil {
			row[2], row[3] = strconv.Itoa(k.Versions), claviger.Printable(s.Cipher)
			row[4], row[5] = strconv.Itoa(s.Length), s.Created.Format(time.DateTime)
		}
		rows = append(rows, row)
	}
	l.table([]string{"KEY", "STATE", "VERSIONS", "CIPHER", "BITS", "CREATED (UTC)"}, rows,
		func(i int) []string { return nonEmpty(keys[i].Why) })
}

// Plan writes a plan.
func Plan(w io.Writer, p *migrate.Plan) {
	l := lines{w}
	l.line("Migration plan, %s. Nothing has been changed.", p.At.Format(time.RFC3339))
	l.line("  from  %s", p.Source)
	l.line("  to    %s", p.Target)
	l.line("")
	l.line("Checks")
	l.checks(p.Checks)
	l.line("")
	if !p.Read {
		l.line("Not ready: the source's keys were not read, so it is not known which keys it has.")
		return
	}
	l.keys(p.Keys)
	l.line("")
	l.line("%d keys: %d to import (%d new versions), %d done, %d that cannot be imported.", p.Counts.Total,
		p.Counts.Planned,
		p.Counts.NewVersions, p.Counts.Done, p.Counts.Blocked)
	if n := len(p.OnlyTarget); n > 0 {
		l.line("%d keys are at the target only, and stay as they are.", n)
	}
	if p.Complete {
		l.line("The migration is complete: every key of the source is here, and a run would do nothing. " +
			"Next: claviger migrate verify, re-encrypt the zones, claviger migrate finish.")
	}
	switch {
	case p.Ready():
	case p.Complete:
		l.line("This plan does not prove that the cut-over will work: see the failures, and what was not tried.")
	default:
		l.line("Not ready: see the failures, what was not tried, and the keys that cannot be imported.")
	}
}

// Result writes the result of a run.
func Result(w io.Writer, r *migrate.Result) {
	l := lines{w}
	l.line("Migration %s: %s", r.Run.Name, r.Run.State)
	l.line("  from  %s", r.Run.Source)
	l.line("  to    %s", r.Run.Target)
	l.line("")
	l.keys(r.Keys)
	l.line("")
	switch n := r.Counts.Blocked; {
	case !r.Changed && n > 0:
		l.line("%d keys: %d done, %d that could not be imported or are in conflict; nothing was changed.",
			r.Counts.Total, r.Counts.Done, n)
	case !r.Changed:
		l.line("%d keys; nothing was left to do.", r.Counts.Total)
	default:
		l.line("%d keys: %d done (%d new versions), %d that could not be imported; took %s.", r.Counts.Total,
			r.Counts.Done,
			r.Counts.NewVersions, n+r.Counts.Planned, r.Took)
	}
}

// Status writes the state of a migration.
func Status(w io.Writer, s *migrate.StatusReport) {
	l := lines{w}
	l.runs(s.Runs)
	if len(s.Keys) > 0 {
		l.line("")
		l.keyStates(s.Keys)
		l.line("")
		l.line("%d keys: %s, %d under way, %d that could not be imported.", s.Counts.Total, done(&s.Counts),
			s.Counts.Planned,
			s.Counts.Blocked)
	}
	for _, c := range s.Conflicts {
		l.line("%s is one key here and another key at %s: %s.", claviger.Printable(c.Version), c.Source, c.Why)
	}
	for _, f := range s.Freed {
		l.line("The name %s was freed at %s by %s on %s.", claviger.Printable(f.Key), f.At.UTC().Format(time.RFC3339),
			f.User, f.Host)
	}
	if s.LastUse != nil {
		l.line("The source was last needed at %s.", s.LastUse.UTC().Format(time.RFC3339))
	} else if len(s.Keys) > 0 {
		l.line("No version of the source has been needed yet.")
	}
}

func (l lines) runs(runs []migrate.Run) {
	if len(runs) == 0 {
		l.line("Nothing was migrated into this metastore yet.")
		return
	}
	var rows [][]string
	for _, run := range runs {
		ended := ""
		if run.Ended != nil {
			ended = run.Ended.Format(time.DateTime)
		}
		rows = append(rows, []string{run.Name, string(run.State), run.Started.Format(time.DateTime), ended,
			strconv.Itoa(run.Resumed), run.Host, run.Source})
	}
	l.table([]string{"RUN", "STATE", "STARTED (UTC)", "ENDED", "RESUMED", "ON", "SOURCE"}, rows,
		func(i int) []string { return nonEmpty(runs[i].Unused()) })
}

// keyStates writes a row for each version of each key, and the reason of its state under the key's last row.
func (l lines) keyStates(keys []migrate.KeyStatus) {
	var rows [][]string
	var why []string
	for _, k := range keys {
		name, state := claviger.Printable(k.Key), string(k.State)
		for _, m := range k.Versions {
			last := "never"
			if m.LastUse != nil {
				last = m.LastUse.UTC().Format(time.DateTime)
			}
			rows = append(rows, []string{name, state, shown(m.Source, "not shown"), shown(m.Target, "-"), last,
				strconv.FormatInt(m.Decrypted, 10), strconv.FormatInt(m.Reencrypted, 10)})
			why = append(why, "")
			name, state = "", ""
		}
		if len(k.Versions) == 0 {
			rows, why = append(rows, []string{name, state, "", "", "", "", ""}), append(why, "")
		}
		why[len(why)-1] = whyState(&k)
	}
	l.table([]string{"KEY", "STATE", "VERSION AT THE SOURCE", "VERSION HERE", "LAST USE OF THE SOURCE'S", "DECRYPTED",
		"RE-ENCRYPTED"}, rows, func(i int) []string { return nonEmpty(why[i]) })
}

func whyState(k *migrate.KeyStatus) string {
	var unserved int64
	for _, m := range k.Versions {
		unserved += m.Unserved
	}
	if unserved == 0 {
		return k.Why
	}
	return strings.TrimPrefix(fmt.Sprintf("%s; %d EDEKs of the source could not be opened, since it was not configured",
		k.Why, unserved), "; ")
}

// done returns the number of keys that are done, and of those that cannot be used.
func done(c *migrate.Counts) string {
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

// Verification writes a comparison with the source.
func Verification(w io.Writer, v *migrate.Verification) {
	l := lines{w}
	l.line("Comparison of all metadata, %s", v.At.Format(time.RFC3339))
	l.line("  source  %s", v.Source)
	l.line("  target  %s", v.Target)
	l.line("")
	if len(v.Keys) > 0 {
		var rows [][]string
		for _, k := range v.Keys {
			same := "same"
			if !k.Same {
				same = "DIFFERENT"
			}
			rows = append(rows, []string{claviger.Printable(k.Key), same})
		}
		l.table([]string{"KEY", ""}, rows, func(i int) []string {
			var below []string
			for _, d := range v.Keys[i].Differences {
				below = append(below, fmt.Sprintf("%s: %s at the source, %s here", d.Field, d.Source, d.Target))
			}
			return append(below, v.Keys[i].Remarks...)
		})
		l.line("")
	}
	if v.Empty() {
		l.line("Nothing was compared, since the source lists no key: check that %s names the right KMS, and that this "+
			"server may list its keys.", hadoopconf.SourceURI)
	} else {
		l.line("%d keys the same, %d different.", v.Same, v.Different)
	}
	if n := len(v.OnlyTarget); n > 0 {
		l.line("%d keys are at the target only: made here, or deleted at the source, since.", n)
	}
}

// Ending writes whether the source may go.
func Ending(w io.Writer, f *migrate.Ending) {
	l := lines{w}
	for _, s := range f.Remarks {
		l.line("Remark: %s", s)
	}
	if len(f.Refusals) > 0 {
		l.line("The source is still needed:")
		for _, s := range f.Refusals {
			l.line("  - %s", s)
		}
		return
	}
	l.proof(f)
	l.line("")
	l.line("The re-encryption of zones does not reach the following places. Data there under a key version of the " +
		"source cannot be read once the source has gone:")
	for _, s := range f.NotReached {
		l.line("  - %s", s)
	}
	l.properties(f.Properties)
	l.leftovers(f.Leftovers)
	l.line("")
	switch {
	case f.Finished && anySecret(f):
		l.line("The migration is finished. The source can be stopped; keep its backup as long as backups of HDFS " +
			"hold EDEKs of it. Copies of its secrets are still on this host: see above.")
	case f.Finished:
		l.line("The migration is finished. The source can be stopped; keep its backup as long as backups of HDFS " +
			"hold EDEKs of it.")
	default:
		l.line("Change the properties marked TO DO, restart the nodes one after the other, then run this command " +
			"again.")
	}
}

// proof writes which facts show that the source may go.
func (l lines) proof(f *migrate.Ending) {
	here := "every key is here and can be used"
	if n := len(f.Deleted); n > 0 {
		here = fmt.Sprintf("every key is here and can be used, except %d that were deleted here", n)
	}
	l.line("No version of the source was used since %s, %s, and %s.", f.Since.Format(time.RFC3339), here,
		edekProof(f.EDEKs))
	if f.Compared != nil {
		l.line("The source had no other keys at the last comparison, at %s. A roll there after that is not known here.",
			f.Compared.UTC().Format(time.RFC3339))
	} else {
		l.line("Since the run, the keys here were not compared with those of the source.")
	}
	if len(f.Deleted) > 0 {
		l.line("")
		l.line("These keys were migrated and have been deleted here since. Files under these keys cannot be " +
			"read once the source has gone. To keep them readable: claviger key undelete.")
		for _, key := range f.Deleted {
			l.line("  - %s", claviger.Printable(key))
		}
	}
}

func (l lines) properties(list []migrate.Property) {
	if len(list) == 0 {
		return
	}
	l.line("")
	l.line("In kms-site.xml of every node:")
	var rows [][]string
	for _, p := range list {
		state := "done"
		if !p.Done {
			state = "TO DO"
		}
		rows = append(rows, []string{"  " + state, p.Name, p.Want, shown(p.Value, "not set")})
	}
	l.table([]string{"", "PROPERTY", "REQUIRED", "CURRENT"}, rows, func(i int) []string {
		if p := list[i]; !p.Done {
			return nonEmpty(p.Where)
		}
		return nil
	})
}

// leftovers lists the files that the procedure has left on this host.
func (l lines) leftovers(list []migrate.Leftover) {
	if len(list) == 0 {
		return
	}
	l.line("")
	l.line("Files of the procedure on this host (check the other hosts too):")
	for _, o := range list {
		state := "on disk"
		if o.Shredded {
			state = "shredded"
		}
		l.line("  %-8s  %s", state, claviger.Printable(o.Path))
		l.line("            %s", o.What)
		if o.Secret && !o.Shredded && len(o.Remaining) == 0 {
			l.line("            -> claviger migrate finish --shred, once all else is done")
		}
		for _, s := range o.Remaining {
			l.line("            left: %s", s)
		}
	}
}

// anySecret reports whether a copy of a secret is still on this host.
func anySecret(f *migrate.Ending) bool {
	return slices.ContainsFunc(f.Leftovers, func(l migrate.Leftover) bool { return l.Secret && !l.Shredded })
}

// Freed writes the names that were freed.
func Freed(w io.Writer, f *migrate.FreedNames) {
	l := lines{w}
	for _, k := range f.Freed {
		l.line("The name %s is free: each user who may create keys can make a key of that name.",
			claviger.Printable(k.Key))
	}
	for _, v := range f.Deleted {
		key, _ := claviger.KeyOfVersion(v)
		l.line("The deleted key of version %s stays, and its files open again once it is undeleted "+
			"(claviger key undelete %s --key-version %s). A new key of the name has to be deleted first.",
			claviger.Printable(v), shellword.Quote(key), shellword.Quote(v))
	}
}
