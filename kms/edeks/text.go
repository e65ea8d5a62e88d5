package edeks

import (
	"fmt"
	"io"
	"strings"
	"time"

	"claviger"
	"claviger/census"
)

// rate is the speed of a census.
type rate struct{ begun time.Time }

func newRate() *rate { return &rate{time.Now()} }

// text returns the speed and the remaining time.
func (r *rate) text(done, total uint64) string {
	seconds := time.Since(r.begun).Seconds()
	if seconds < 1 || done == 0 {
		return ""
	}
	perSecond := float64(done) / seconds
	left := time.Duration(float64(total-done) / perSecond * float64(time.Second))
	return fmt.Sprintf("%.1f million a second, %v left", perSecond/1e6, left.Round(time.Second))
}

// text prints a report for people.
func text(w io.Writer, r *census.Report) {
	fmt.Fprintf(w, "Image: transaction %d, newest change %s, layout %d, %d inodes (%d live)\n", r.Image.Transaction,
		orNone(r.Image.Time), r.Image.LayoutVersion, r.Image.INodes, r.LiveINodes)
	if len(r.Versions) == 0 {
		fmt.Fprintln(w, "No file has an EDEK.")
	} else {
		fmt.Fprintln(w, "\nVERSION\tLIVE\tIN TRASH\tOPEN\tSNAPSHOTS ONLY\tRETIRABLE")
	}
	for i := range r.Versions {
		v := &r.Versions[i]
		retirable := "no"
		if v.Retirable {
			retirable = "yes"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\n", claviger.Printable(v.Version), v.Live, v.InTrash, v.OpenForWrite,
			v.SnapshotOnly, retirable)
	}
	for i := range r.Versions {
		evidence(w, &r.Versions[i])
	}
	if len(r.Zones) > 0 {
		fmt.Fprintln(w, "\nZONE\tKEY\tSTATE\tUNENCRYPTED\tRE-ENCRYPTION")
	}
	for _, z := range r.Zones {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", claviger.Printable(z.Path), claviger.Printable(z.Key), z.State,
			z.Unencrypted, reencryption(z.Reencryption))
	}
	fmt.Fprintf(w, "\n%d live files have no EDEK. %d live EDEKs are outside of zones.\n", r.UnencryptedLive,
		r.OutsideZones)
	if len(r.KeysWithoutZone) > 0 {
		fmt.Fprintf(w, "Keys of EDEKs that have no zone: %s\n",
			claviger.Printable(strings.Join(r.KeysWithoutZone, ", ")))
	}
	for i := range r.Zones {
		if z := &r.Zones[i]; z.WithoutEDEK() > 0 {
			fmt.Fprintf(w, "Warning: zone %s has %d live files without an EDEK, and %d that only snapshots show, for "+
				"example %s. They were copied there raw, or their EDEKs were lost: no version of key %s counts as "+
				"retirable.\n", claviger.Printable(z.Path), z.Unencrypted, z.UnencryptedSnapshots,
				orNone(claviger.Printable(strings.Join(z.UnencryptedPaths, ", "))), claviger.Printable(z.Key))
		}
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(w, "Warning: %s\n", warning)
	}
	for _, problem := range r.Problems {
		fmt.Fprintf(w, "PROBLEM: %s\n", problem)
	}
}

// evidence prints what needs a version.
func evidence(w io.Writer, v *census.Version) {
	if len(v.Snapshots)+len(v.Paths) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s is needed by:\n", claviger.Printable(v.Version))
	for _, s := range v.Snapshots {
		deleted := ""
		if s.Deleted {
			deleted = " (its owner has deleted it; the NameNode keeps it until older ones are deleted)"
		}
		fmt.Fprintf(w, "  %d in snapshot %s%s\n", s.EDEKs, claviger.Printable(s.Snapshot), deleted)
	}
	for _, p := range v.Paths {
		fmt.Fprintf(w, "  %s\n", claviger.Printable(p))
	}
}

// reencryption describes a zone's last re-encryption.
func reencryption(r *census.Reencryption) string {
	if r == nil {
		return "never"
	}
	text := fmt.Sprintf("%s to %s", r.State, claviger.Printable(r.Version))
	switch {
	case r.Completed != "":
		text += " at " + r.Completed
	case r.Submitted != "":
		text += ", submitted at " + r.Submitted
	}
	return fmt.Sprintf("%s: %d files, %d failures", text, r.Files, r.Failures)
}

func orNone(text string) string {
	if text == "" {
		return "unknown"
	}
	return text
}
