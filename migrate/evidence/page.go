package evidence

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/migrate"
	"claviger/pkcs11"
)

// pageText is the page of the format "claviger migrate report 1". A changed page is a new format.
//
//go:embed page.html
var pageText string

// page makes the page from the other parts of the report. The same report gives the same bytes.
func (r *Report) page() ([]byte, error) {
	t, err := template.New(pageName).Funcs(template.FuncMap{
		"name": claviger.Printable, "opt": optional, "time": timeText, "when": timeOr, "flag": attribute, "uses": uses,
		"text": text, "verdict": verdictWords, "earlier": earlier, "proof": proof,
	}).Parse(pageText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, r)
	return b.Bytes(), err
}

// optional returns a readable text, or "-" for none.
func optional(s string) string {
	if s == "" {
		return "-"
	}
	return claviger.Printable(s)
}

// text returns a sentence without characters that mislead a reader.
func text(s string) string { return claviger.Escape(s, "\n\t") }

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// timeOr returns the text of a time, or none if t is nil.
func timeOr(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return timeText(*t)
}

// flagText is the value of an attribute. Bad is true if a protected key has another value.
type flagText struct {
	Text string
	Bad  bool
}

func attribute(value *bool, want bool) flagText {
	switch {
	case value == nil:
		return flagText{"not reported", false}
	case *value:
		return flagText{"yes", !want}
	}
	return flagText{"no", want}
}

// uses lists what a key may do.
func uses(p pkcs11.Protection) string {
	var list []string
	for _, u := range []struct {
		name string
		may  *bool
	}{{"encrypt", p.Encrypt}, {"decrypt", p.Decrypt}, {"sign", p.Sign}, {"verify", p.Verify}, {"wrap", p.Wrap},
		{"unwrap", p.Unwrap}, {"derive", p.Derive}} {
		if u.may != nil && *u.may {
			list = append(list, u.name)
		}
	}
	if len(list) == 0 {
		return "none reported"
	}
	return strings.Join(list, ", ")
}

// earlier returns the verdicts in the journal.
func earlier(journal []migrate.JournalRecord) (list []*migrate.Verdict) {
	for i := range journal {
		if v := journal[i].Verdict(); v != nil {
			list = append(list, v)
		}
	}
	return list
}

// proof says by what a run was ended.
func proof(r migrate.Run) string {
	text := edekProof(r.EDEKs)
	if unused := r.Unused(); unused != "" {
		text += "; " + unused
	}
	return text
}

// edekProof describes the proof that no EDEK needs the source.
func edekProof(p *migrate.EDEKProof) string {
	switch {
	case p == nil:
		return "-"
	case p.By == migrate.ByVerdict && len(p.Accepted) > 0:
		return claviger.Printable(p.Verdict) + "; accepted by the operator: " + strings.Join(p.Accepted, "; ")
	case p.By == migrate.ByVerdict:
		return claviger.Printable(p.Verdict)
	}
	return "the operator's word (--edeks-done), not by a measurement"
}

// verdictWords says what the verdict is, and whether the migration was ended.
func verdictWords(r *Report) (words []string) {
	switch v := r.Verdict; {
	case v == nil:
		words = append(words, "This file has no verdict. It does not show whether data still needs the source of the "+
			"keys.")
	case v.Outcome == migrate.Granted:
		words = append(words, fmt.Sprintf("%s: at %s no EDEK in the images below needed the source %s. The source is "+
			"retirable, as far as images show it.", claviger.Printable(v.Name), timeText(v.At),
			claviger.Printable(v.Source)))
	case v.Outcome == migrate.Needed:
		words = append(words, fmt.Sprintf("%s: at %s EDEKs in the images below needed the source %s. Without the "+
			"source, the data of these EDEKs cannot be read. The source is not retirable.",
			claviger.Printable(v.Name), timeText(v.At), claviger.Printable(v.Source)))
	default:
		words = append(words, fmt.Sprintf("%s: at %s the images below did not show whether EDEKs need the source. "+
			"There is no verdict.", claviger.Printable(v.Name), timeText(v.At)))
	}
	if r.Verdict != nil {
		for _, a := range r.Verdict.Accepted {
			words = append(words, "Accepted by the operator, without a measurement: "+a+".")
		}
		for _, l := range r.Verdict.Lost {
			words = append(words, "Warning: "+l+".")
		}
	}
	if r.Censuses == nil {
		words = append(words, "This file has no census of EDEKs.")
	}
	if r.Status == nil || len(r.Status.Runs) == 0 {
		return append(words, "The journal has no run of a migration.")
	}
	last := r.Status.Runs[len(r.Status.Runs)-1]
	at := slices.IndexFunc(r.Status.Runs, func(run migrate.Run) bool { return run.State == migrate.Finished })
	switch {
	case last.State == migrate.Finished && last.EDEKs != nil && last.EDEKs.By == migrate.ByVerdict:
		words = append(words, fmt.Sprintf("The migration was ended at %s, by %s.",
			timeOr(last.Ended, "an unknown time"), claviger.Printable(last.EDEKs.Verdict)))
	case last.State == migrate.Finished:
		words = append(words, fmt.Sprintf("The migration was ended at %s, by the operator's word that no EDEK needs "+
			"the source (--edeks-done). That was not measured.", timeOr(last.Ended, "an unknown time")))
	case at >= 0:
		words = append(words, "An earlier migration was ended; the last run was not: its state is "+
			string(last.State)+".")
	default:
		words = append(words, "The migration was not ended: the state of the last run is "+string(last.State)+".")
	}
	return words
}
