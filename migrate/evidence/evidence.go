// Package evidence has the file that proves a migration to an auditor: a zip file with the plan, the journal, the
// counters, the census and the verdict, the comparison with the source, the attributes of the new keys in the HSM, and
// the head of the audit log. A page in HTML shows them to people.
//
// The members:
//
//	manifest.json   names, sizes and SHA-256 digests of all other members, except the signature
//	manifest.sig    Ed25519 signature of the bytes of manifest.json, 64 bytes
//	index.html      the page, made from the other members alone
//	about.json      when, where, by which user and by which build the file was made, and what it lacks
//	...             one file for each part, see Parts
//
// The file has one form only. Members are stored without compression, in a fixed order, with nothing before, between
// or after them, and each JSON has the form that package encoding/json writes. So Verify can make the zip file, each
// JSON and the page again from what it has read, and compare all bytes. Nothing can be added where a reader does not
// look.
//
// The signature shows who made the file, not that the measurements are true. Verify trusts no key of the file itself:
// its caller passes the public key, which the auditor did not get together with the file.
package evidence

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"time"

	"claviger/audit"
	"claviger/buildinfo"
	"claviger/census"
	"claviger/migrate"
	"claviger/pkcs11"
	"claviger/provider/hsm"
)

// The formats of about.json and manifest.json. A change of the page, or of the JSON of a part, needs a new number,
// and the code of the old number stays: Verify makes each page again.
const (
	format         = "claviger migrate report 1"
	manifestFormat = "claviger migrate report manifest 1"
)

// Report is the content of an evidence file. A part that is nil was not made; About says why.
type Report struct {
	About        About
	Plan         *migrate.Plan
	Status       *migrate.StatusReport
	Journal      []migrate.JournalRecord
	Counters     []migrate.UseCounter
	Verification *migrate.Verification
	Censuses     []Census
	Verdict      *migrate.Verdict
	Keys         *Keys
	Audit        []AuditHead
}

// About says when, where and by whom a report was made.
type About struct {
	Format string         `json:"format"`
	Made   time.Time      `json:"made"`
	Host   string         `json:"host"`
	User   string         `json:"user"` // of the operating system
	Conf   string         `json:"conf"` // configuration folder
	Build  buildinfo.Info `json:"build"`
	Source string         `json:"source"` // URI; "" if none is configured any more
	Target string         `json:"target"` // URI
	Signer string         `json:"signer"` // fingerprint of the public key
	Parts  []Part         `json:"parts"`
}

// Part says whether a part was made.
type Part struct {
	Member string `json:"member"` // file in the zip file
	What   string `json:"what"`
	Made   bool   `json:"made"`
	Why    string `json:"why,omitempty"` // why it was not made
}

// Census has the counts of one image.
type Census struct {
	Image  string         `json:"image"` // file or URL
	SHA256 string         `json:"sha256"`
	Bytes  int64          `json:"bytes"`
	Census *census.Report `json:"census"`
}

// Keys lists the new versions, and the protection of each key in the HSM.
type Keys struct {
	Token pkcs11.TokenInfo `json:"token"`
	// Attestation says what the vendor of the HSM attests.
	Attestation string                  `json:"attestation"`
	Versions    []hsm.VersionProtection `json:"versions"`
}

// NoAttestation is the Attestation of a token's profile for which claviger requests no statement of the vendor.
func NoAttestation(profile pkcs11.Profile) string {
	return fmt.Sprintf("No vendor attestation: claviger requests none with the profile %s. The attributes are those "+
		"that the token's PKCS#11 library reports.", profile)
}

// AuditHead is the end of the audit log of the host.
type AuditHead struct {
	Place string     `json:"place"` // where the head is stored
	Head  audit.Head `json:"head"`
}

// part is a member with a part of the report. value points to its field.
type part struct {
	member, what string
	value        any
}

// parts returns all parts that a report may have, in the order of the members.
func (r *Report) parts() []part {
	return []part{
		{"plan.json", "what a run would do now, and the checks of the procedure", &r.Plan},
		{"status.json", "the runs, the keys, and which version here replaces which version of the source", &r.Status},
		{"journal.json", "the records of the journal as they are stored", &r.Journal},
		{"counters.json", "which versions of the source clients have asked for, how often, and when last", &r.Counters},
		{"verify.json", "the comparison of all metadata with the running source", &r.Verification},
		{"census.json", "the census: EDEKs of each key version, counted in fsimages", &r.Censuses},
		{"verdict.json", "the verdict: whether EDEKs of HDFS still need the source", &r.Verdict},
		{"keys.json", "the attributes of each new key version in the HSM", &r.Keys},
		{"audit.json", "the head of the audit log", &r.Audit},
	}
}

// RecordMissing records why a part was not made. field points to the part in r.
func (r *Report) RecordMissing(field any, why string) {
	for _, p := range r.parts() {
		if p.value == field {
			r.About.Parts = append(r.About.Parts, Part{Member: p.member, What: p.what, Why: why})
			return
		}
	}
	panic("not a field of the report")
}

// listParts completes About.Parts: it adds the parts that were made, and sorts all as parts does.
func (r *Report) listParts() error {
	given := map[string]Part{}
	for _, p := range r.About.Parts {
		given[p.Member] = p
	}
	r.About.Parts = nil
	for _, p := range r.parts() {
		one, lacks := given[p.member]
		if one.Made = !isNil(p.value); one.Made {
			one = Part{p.member, p.what, true, ""}
		} else if !lacks {
			return fmt.Errorf("nothing says why the report lacks %s", p.member)
		}
		r.About.Parts = append(r.About.Parts, one)
	}
	return nil
}

// isNil reports whether the field that value points to is nil.
func isNil(value any) bool { return reflect.ValueOf(value).Elem().IsNil() }

// Member is a member in the manifest.
type Member struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Bytes  int    `json:"bytes"`
}

// Manifest names all members, except itself and its signature.
type Manifest struct {
	Format  string    `json:"format"`
	Made    time.Time `json:"made"`
	Host    string    `json:"host"`
	Signer  string    `json:"signer"` // fingerprint of the public key
	Members []Member  `json:"members"`
}

// Write signs the report and writes it as an evidence file. It completes r.About.
func (r *Report) Write(w io.Writer, key ed25519.PrivateKey) (*Manifest, error) {
	r.About.Format, r.About.Signer = format, fingerprintOf(key)
	if err := r.listParts(); err != nil {
		return nil, err
	}
	members, err := r.members()
	if err != nil {
		return nil, err
	}
	m := manifestOf(&r.About, members)
	text, err := encode(m)
	if err != nil {
		return nil, err
	}
	all := append([]file{{manifestName, text}, {signatureName, ed25519.Sign(key, text)}}, members...)
	total := 0
	for _, f := range all {
		total += len(f.data)
	}
	if total > maxContent {
		return nil, fmt.Errorf("the report has %d bytes, and a report that can be verified has at most %d; leave out "+
			"the paths of files (--paths 0)", total, maxContent)
	}
	return m, pack(w, all)
}

// manifestOf makes the manifest of members.
func manifestOf(a *About, members []file) *Manifest {
	m := &Manifest{Format: manifestFormat, Made: a.Made, Host: a.Host, Signer: a.Signer, Members: []Member{}}
	for _, f := range members {
		m.Members = append(m.Members, Member{f.name, digest(f.data), len(f.data)})
	}
	return m
}

// digest returns the SHA-256 of data, hexadecimal.
func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// members returns the page and all JSON files. The page comes from what the JSON files say, not from r itself.
func (r *Report) members() ([]file, error) {
	text, err := encode(&r.About)
	if err != nil {
		return nil, err
	}
	files := []file{{aboutName, text}}
	for _, p := range r.parts() {
		if isNil(p.value) {
			continue
		}
		if text, err = encode(p.value); err != nil {
			return nil, fmt.Errorf("%s: %w", p.member, err)
		}
		files = append(files, file{p.member, text})
	}
	read := new(Report)
	if faults := read.decode(files); len(faults) > 0 {
		return nil, fmt.Errorf("the report cannot be read back: %w", errors.Join(faults...))
	}
	page, err := read.page()
	return append([]file{{pageName, page}}, files...), err
}

// decode reads the JSON files. It returns what is wrong with them.
func (r *Report) decode(files []file) (faults []error) {
	byName := map[string]any{aboutName: &r.About}
	for _, p := range r.parts() {
		byName[p.member] = p.value
	}
	for _, f := range files {
		if value := byName[f.name]; value != nil {
			if err := decode(f.data, value); err != nil {
				faults = append(faults, fmt.Errorf("%s %w", f.name, err))
			}
		}
	}
	return faults
}

// encode returns the JSON of v in the one form that decode accepts.
func encode(v any) ([]byte, error) {
	once, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	// A text that is not in UTF-8 changes when it is encoded the first time.
	again := reflect.New(reflect.TypeOf(v).Elem()).Interface()
	if err := json.Unmarshal(once, again); err != nil {
		return nil, err
	}
	return indented(again)
}

func indented(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return b.Bytes(), err
}

// decode reads JSON into v. It accepts only bytes that encode writes: a reader of the file could see another meaning in
// others, for example in a name that is there twice.
func decode(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("is not the JSON that claviger writes: %w", err)
	}
	text, err := indented(v)
	if err == nil && !bytes.Equal(text, data) {
		err = errors.New("is not the JSON that claviger writes: a field, or the form, differs")
	}
	return err
}
