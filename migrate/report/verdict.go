package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"claviger"
	"claviger/migrate"
)

// Verdict writes whether EDEKs of HDFS need the source.
func Verdict(w io.Writer, v *migrate.Verdict) {
	l := lines{w}
	switch v.Outcome {
	case migrate.Granted:
		l.line("The source %s is retirable: no EDEK of the images needs it.", v.Source)
	case migrate.Needed:
		l.line("The source %s is not retirable: EDEKs need it.", v.Source)
	default:
		l.line("There is no verdict on the source %s. The images do not show whether EDEKs need it.",
			shown(v.Source, "(none)"))
	}
	l.faults(v)
	l.line("")
	l.images(v.Images)
	l.sourceVersions(v.Versions)
	l.evidence(v.Versions)
	if v.LastUse != nil {
		l.line("The source was last asked for a version at %s.", v.LastUse.UTC().Format(time.RFC3339))
	} else {
		l.line("No version of the source has been asked for yet.")
	}
	if len(v.UnusedKeys) > 0 {
		l.line("Keys here that no zone and no EDEK of the images has: %s",
			claviger.Printable(strings.Join(v.UnusedKeys, ", ")))
	}
	l.rest(v, "the source")
}

// VersionVerdict writes whether EDEKs of HDFS need one version of a key here.
func VersionVerdict(w io.Writer, v *migrate.Verdict) {
	l := lines{w}
	of := &v.Versions[0]
	name := claviger.Printable(of.Version)
	switch v.Outcome {
	case migrate.Granted:
		l.line("No EDEK of the images needs version %s.", name)
	case migrate.Needed:
		l.line("Version %s is %s.", name, of.Why)
	default:
		l.line("There is no verdict on version %s. The images do not show whether EDEKs need it.", name)
	}
	l.faults(v)
	l.line("")
	l.images(v.Images)
	l.evidence(v.Versions)
	if of.LastUse != nil {
		l.line("The version may have been used until %s.", of.LastUse.UTC().Format(time.RFC3339))
	}
	l.rest(v, "the version")
}

// faults writes the problems, what the operator has accepted, and EDEKs that nobody can decrypt.
func (l lines) faults(v *migrate.Verdict) {
	for _, p := range v.Problems {
		l.line("  PROBLEM: %s", p)
	}
	for _, a := range v.Accepted {
		l.line("  ACCEPTED by the operator: %s", a)
	}
	for _, e := range v.Lost {
		l.line("  WARNING: %s", e)
	}
}

// rest writes what to do, what an image does not show, and the name of the record.
func (l lines) rest(v *migrate.Verdict, what string) {
	if len(v.ToDo) > 0 {
		l.line("")
		l.line("To do:")
		for i, s := range v.ToDo {
			l.line("  %d. %s", i+1, s.Do)
			if s.Command != "" {
				l.line("     %s", s.Command)
			}
		}
	}
	l.line("")
	l.line("An image does not show the following places. They may need %s too:", what)
	for _, s := range v.NotReached {
		l.line("  - %s", s)
	}
	if v.Name != "" {
		l.line("")
		l.line("Recorded as %s.", v.Name)
	}
}

// images writes a row for each image, and its digest below.
func (l lines) images(images []migrate.VerdictImage) {
	if len(images) == 0 {
		return
	}
	var rows [][]string
	for _, m := range images {
		asOf := "not known"
		if m.AsOf != nil {
			asOf = m.AsOf.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{strconv.FormatUint(uint64(m.Namespace), 10), shown(m.Nameservice, "-"),
			strconv.FormatUint(m.Transaction, 10), asOf, claviger.Printable(m.Image)})
	}
	l.table([]string{"NAMESPACE", "NAMESERVICE", "TRANSACTION", "AS OF (UTC)", "IMAGE"}, rows, func(i int) []string {
		return []string{fmt.Sprintf("SHA-256 %s, %d bytes", images[i].Digest, images[i].Bytes)}
	})
	l.line("")
}

// sourceVersions writes a row for each version, and the reason below.
func (l lines) sourceVersions(versions []migrate.VersionVerdict) {
	if len(versions) == 0 {
		return
	}
	var rows [][]string
	for i := range versions {
		v := &versions[i]
		retirable, last := "no", "never"
		if v.Retirable {
			retirable = "yes"
		}
		if v.LastUse != nil {
			last = v.LastUse.UTC().Format(time.DateTime)
		}
		rows = append(rows, []string{shown(v.Version, claviger.Printable(v.Key)+" (versions not shown)"),
			shown(v.ReplacedBy, "-"), strconv.FormatUint(v.EDEKs, 10), last, retirable})
	}
	l.table([]string{"VERSION OF THE SOURCE", "VERSION HERE", "EDEKS", "LAST ASKED FOR", "RETIRABLE"}, rows,
		func(i int) []string {
			if versions[i].Retirable {
				return nil
			}
			return nonEmpty(versions[i].Why)
		})
	l.line("")
}

// evidence writes the snapshots and the oldest files that need versions.
func (l lines) evidence(versions []migrate.VersionVerdict) {
	for i := range versions {
		v := &versions[i]
		if len(v.Snapshots)+len(v.Paths) == 0 {
			continue
		}
		l.line("%s is needed by:", claviger.Printable(v.Version))
		for _, s := range v.Snapshots {
			l.line("  snapshot %s", claviger.Printable(s))
		}
		for _, p := range v.Paths {
			l.line("  %s", claviger.Printable(p))
		}
		l.line("")
	}
}

// edekProof returns what shows that no EDEK of HDFS needs the source.
func edekProof(p *migrate.EDEKProof) string {
	if p == nil || p.By != migrate.ByVerdict {
		return "by the operator's word (--edeks-done) the EDEKs of all zones are re-encrypted"
	}
	var images []string
	for _, m := range p.Images {
		text := fmt.Sprintf("transaction %d of namespace %d", m.Transaction, m.Namespace)
		if m.AsOf != nil {
			text += " at " + m.AsOf.UTC().Format(time.RFC3339)
		}
		images = append(images, text)
	}
	text := fmt.Sprintf("by %s no EDEK of HDFS needs the source (%s)", p.Verdict, strings.Join(images, "; "))
	if len(p.Accepted) > 0 {
		text += "; accepted by the operator: " + strings.Join(p.Accepted, "; ")
	}
	return text
}
