package evidence

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"claviger"
	"claviger/buildinfo"
	"claviger/durable"
	"claviger/migrate"
)

// Verification is the result of Verify. The fields below Findings are set only if the file was verified.
type Verification struct {
	Format   string `json:"format"` // "claviger migrate report verify 1"
	File     string `json:"file"`
	SHA256   string `json:"sha256"` // of the file
	Bytes    int    `json:"bytes"`
	Key      string `json:"publicKey"` // fingerprint of the key that the caller trusts
	Verified bool   `json:"verified"`
	// Findings are the reasons why the file is not verified.
	Findings []string `json:"findings"`

	Members []Member        `json:"members"`
	Made    *time.Time      `json:"made,omitempty"`
	Host    string          `json:"host,omitempty"`
	User    string          `json:"user,omitempty"`
	Build   *buildinfo.Info `json:"build,omitempty"`
	Source  string          `json:"source,omitempty"`
	Target  string          `json:"target,omitempty"`
	// Verdict is the outcome of the verdict in the file; "" if the file has none.
	Verdict migrate.Outcome `json:"verdict"`
	// Accepted lists the facts that the operator has accepted for the verdict, without a measurement.
	Accepted []string `json:"accepted,omitempty"`
	// Lacks are the parts that the file does not have.
	Lacks []Part `json:"lacks"`
}

// Verify reads an evidence file, and verifies its signature and its content. The error
// is only for files that cannot be read, and for a report of a format that this build does not know.
func Verify(path string, key ed25519.PublicKey) (*Verification, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	v, err := verify(data, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	v.File = path
	return v, nil
}

// verify is Verify for the content of a file.
func verify(data []byte, key ed25519.PublicKey) (*Verification, error) {
	v := &Verification{Format: "claviger migrate report verify 1", SHA256: digest(data), Bytes: len(data),
		Key: fingerprint(key), Findings: []string{}, Members: []Member{}, Lacks: []Part{}}
	files, faults := unpack(data)
	v.Findings = append(v.Findings, faults...)
	if len(files) == 0 && len(faults) > 0 {
		return v, nil
	}
	m, err := v.manifest(files, key)
	if err != nil || m == nil {
		return v, err
	}
	v.members(m, files)
	if len(v.Findings) > 0 {
		return v, nil
	}
	r, err := v.report(m, files)
	if err != nil {
		return nil, err
	}
	if v.Verified = len(v.Findings) == 0; v.Verified {
		v.describe(m, r)
	}
	return v, nil
}

// readFile reads a whole file, up to the limit.
func readFile(path string) ([]byte, error) {
	f, err := durable.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.Size() > int64(maxContent+maxHeaders):
		return nil, fmt.Errorf("%s has %d bytes, and a report has at most %d; it is not a report", path, info.Size(),
			maxContent+maxHeaders)
	}
	data := make([]byte, info.Size())
	_, err = io.ReadFull(f, data)
	return data, err
}

func (v *Verification) addFinding(format string, args ...any) {
	v.Findings = append(v.Findings, fmt.Sprintf(format, args...))
}

// content returns the content of a member, or nil.
func content(files []file, name string) []byte {
	i := slices.IndexFunc(files, func(f file) bool { return f.name == name })
	if i < 0 {
		return nil
	}
	return files[i].data
}

// errOtherFormat says that another build made the report.
var errOtherFormat = errors.New("the report has a format that this build does not know; verify it with the build of " +
	"claviger that made it, or a newer one")

// manifest checks the signature, and reads the manifest. It returns nil if the manifest cannot be read.
func (v *Verification) manifest(files []file, key ed25519.PublicKey) (*Manifest, error) {
	text, signature := content(files, manifestName), content(files, signatureName)
	signed := text != nil && ed25519.Verify(key, text, signature)
	m := new(Manifest)
	err := json.Unmarshal(text, m) // for messages; nothing is trusted without the signature
	switch {
	case text == nil:
		v.addFinding("member %s is missing", manifestName)
		return nil, nil //nolint:nilnil // the finding says it
	case signature == nil:
		v.addFinding("member %s is missing: nothing shows who made the report", signatureName)
	case !signed && err == nil && m.Signer != v.Key:
		v.addFinding("the report names another key, %s: another key has signed it, or it was changed",
			claviger.Printable(m.Signer))
	case !signed:
		v.addFinding("the signature is not that of this manifest by this key: the manifest, the signature, or the " +
			"key differs")
	}
	switch {
	case signed && err == nil && m.Format != manifestFormat:
		return nil, errOtherFormat
	case err != nil:
		v.addFinding("%s is not the JSON that claviger writes: %v", manifestName, err)
		return nil, nil //nolint:nilnil // the finding says it
	}
	if err := decode(text, new(Manifest)); err != nil {
		v.addFinding("%s %v", manifestName, err)
	}
	if m.Signer != v.Key && signed {
		v.addFinding("the manifest is signed by this key and names another key, %s", claviger.Printable(m.Signer))
	}
	return m, nil
}

// members compares the members with the manifest.
func (v *Verification) members(m *Manifest, files []file) {
	listed := map[string]bool{manifestName: true, signatureName: true}
	for _, of := range m.Members {
		data := content(files, of.Name)
		switch {
		case listed[of.Name]:
			v.addFinding("the manifest names %q twice", of.Name)
		case data == nil:
			v.addFinding("member %q of the manifest is missing", of.Name)
		case len(data) != of.Bytes || digest(data) != of.SHA256:
			v.addFinding("member %s was changed: it has %d bytes with the digest %s, and the manifest says %d and %s",
				of.Name, len(data), digest(data), of.Bytes, claviger.Printable(of.SHA256))
		}
		listed[of.Name] = true
	}
	for _, f := range files {
		if !listed[f.name] {
			v.addFinding("member %s is not in the manifest", f.name)
		}
	}
	for _, name := range []string{pageName, aboutName} {
		if !listed[name] {
			v.addFinding("the manifest does not name %s", name)
		}
	}
}

// report reads the JSON files, and compares them with the manifest and the page.
func (v *Verification) report(m *Manifest, files []file) (*Report, error) {
	about := struct {
		Format string `json:"format"`
	}{}
	if err := json.Unmarshal(content(files, aboutName), &about); err == nil && about.Format != format {
		return nil, errOtherFormat
	}
	r := new(Report)
	for _, fault := range r.decode(files) {
		v.addFinding("%v", fault)
	}
	if len(v.Findings) > 0 {
		return r, nil
	}
	if !slices.Equal(m.Members, manifestOf(&r.About, files[2:]).Members) {
		v.addFinding("%s does not name the members in their order", manifestName)
	}
	if !m.Made.Equal(r.About.Made) || m.Host != r.About.Host || m.Signer != r.About.Signer {
		v.addFinding("%s and %s name another time, host or key", manifestName, aboutName)
	}
	if r.Verdict != nil {
		if err := r.Verdict.Consistent(); err != nil {
			v.addFinding("verdict.json: %v", err)
		}
	}
	claims := r.About.Parts
	if err := r.listParts(); err != nil || !slices.Equal(claims, r.About.Parts) {
		v.addFinding("%s does not name the parts that the report has", aboutName)
		return r, nil //nolint:nilerr // the finding says it
	}
	page, err := r.page()
	if err != nil {
		v.addFinding("the page cannot be made from the JSON files: %v", err)
	} else if !bytes.Equal(page, content(files, pageName)) {
		v.addFinding("%s does not show what the JSON files say", pageName)
	}
	return r, nil
}

// describe adds what the verified file says of itself.
func (v *Verification) describe(m *Manifest, r *Report) {
	a := &r.About
	v.Members, v.Made, v.Host, v.User, v.Build, v.Source, v.Target = m.Members, &a.Made, a.Host, a.User, &a.Build,
		a.Source, a.Target
	if r.Verdict != nil {
		v.Verdict, v.Accepted = r.Verdict.Outcome, r.Verdict.Accepted
	}
	for _, p := range a.Parts {
		if !p.Made {
			v.Lacks = append(v.Lacks, p)
		}
	}
}

// IsReport reports whether a file is a report of this program: a zip file with our manifest. It verifies nothing.
func IsReport(path string) bool { return manifestIn(path).Format == manifestFormat }

// Claimed returns the fingerprint of the key that a file names; "" if it cannot be read. Anybody can write a name into
// a file, so it is for messages only.
func Claimed(path string) string { return manifestIn(path).Signer }

// manifestIn returns the manifest of a file without a check; an empty one if it cannot be read.
func manifestIn(path string) Manifest {
	var m Manifest
	data, err := readFile(path)
	if err != nil {
		return m
	}
	files, _ := unpack(data)
	if json.Unmarshal(content(files, manifestName), &m) != nil {
		return Manifest{}
	}
	return m
}
