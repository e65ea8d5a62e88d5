// Package evidence does the work of `claviger migrate report`. It gathers what a KMS knows of a migration, and writes
// the file of package migrate/evidence.
package evidence

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"claviger"
	"claviger/buildinfo"
	"claviger/durable"
	"claviger/kms"
	"claviger/migrate"
	"claviger/migrate/evidence"
	"claviger/provider/hsm"
	"claviger/secret"
	"claviger/terminal"
)

// Written is the output of the command.
type Written struct {
	File   string            `json:"file"`
	Bytes  int64             `json:"bytes"`
	Signer string            `json:"publicKey"` // fingerprint
	Parts  []evidence.Part   `json:"parts"`
	Files  []evidence.Member `json:"members"`
}

// Report gathers the parts, writes the evidence file, and shows on out what it has. hdfs is the configuration folder of
// HDFS; "" is that of the KMS. Progress goes to log.
func (o *Options) Report(ctx context.Context, svc *kms.Service, engine *migrate.Engine, hdfs string,
	out *terminal.Output, log io.Writer) error {
	made, err := o.write(ctx, svc, engine, hdfs, log)
	if err != nil {
		return err
	}
	return out.Write(made, made.text)
}

// write gathers the parts, and writes the evidence file.
func (o *Options) write(ctx context.Context, svc *kms.Service, engine *migrate.Engine, hdfs string, log io.Writer) (
	*Written, error) {
	key, err := o.prepare()
	if err != nil {
		return nil, err
	}
	defer clear(key)
	r, err := o.gather(ctx, svc, engine, hdfs, log)
	if err != nil {
		return nil, err
	}
	made := &Written{File: o.Out}
	content := func(w io.Writer) error {
		count := &counter{to: w}
		m, err := r.Write(count, key)
		if err == nil {
			made.Bytes, made.Files, made.Signer, made.Parts = count.bytes, m.Members, m.Signer, r.About.Parts
		}
		return err
	}
	if !o.Overwrite {
		return made, durable.CreateFrom(o.Out, 0o600, content)
	}
	p, err := durable.Prepare(o.Out, 0o600, content)
	if err != nil {
		return nil, err
	}
	err = o.replaceable() // again, because gathering takes time
	if err == nil {
		err = p.Replace()
	}
	if err != nil {
		return nil, errors.Join(err, p.Discard())
	}
	return made, nil
}

// counter counts the bytes that go to a writer.
type counter struct {
	to    io.Writer
	bytes int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.bytes += int64(n)
	return n, err
}

// prepare finds the faults that would otherwise show only after a census, which may take minutes. It returns the key.
func (o *Options) prepare() (ed25519.PrivateKey, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	key, err := evidence.ReadKey(o.Key)
	if err != nil {
		return nil, fmt.Errorf("--key: %w", err)
	}
	if _, err := os.Stat(filepath.Dir(o.Out)); err != nil {
		return nil, fmt.Errorf("--out: %w", err)
	}
	if err := o.replaceable(); err != nil {
		clear(key)
		return nil, fmt.Errorf("--out: %w", err)
	}
	return key, nil
}

// replaceable returns why the file of --out cannot be written: it exists, and no report is in it, or --overwrite is
// not given. A wrong name must not replace another file, such as the key that signs.
func (o *Options) replaceable() error {
	out, err := os.Stat(o.Out)
	if err == nil {
		for flag, names := range map[string][]string{"key": {o.Key}, "verdict": {o.VerdictFile}, "image": o.Images} {
			for _, name := range names {
				if read, err := os.Stat(name); err == nil && os.SameFile(read, out) {
					return fmt.Errorf("%s is the file of --%s, too: choose another name", o.Out, flag)
				}
			}
		}
	}
	switch _, err := os.Lstat(o.Out); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !evidence.IsReport(o.Out):
		return fmt.Errorf("%w; it is not a report, and --overwrite replaces only a report",
			&durable.AlreadyError{Path: o.Out})
	case !o.Overwrite:
		return fmt.Errorf("%w; --overwrite replaces it", &durable.AlreadyError{Path: o.Out})
	}
	return nil
}

// gather makes all parts of a report.
func (o *Options) gather(ctx context.Context, svc *kms.Service, engine *migrate.Engine, hdfs string,
	log io.Writer) (*evidence.Report, error) {
	r := &evidence.Report{About: evidence.About{User: secret.CurrentUser(), Build: buildinfo.Read(),
		Target: svc.Primary.URI()}}
	var err error
	if r.About.Host, err = os.Hostname(); err != nil {
		return nil, err
	}
	if r.About.Conf, err = filepath.Abs(svc.Conf.Dir()); err != nil {
		return nil, err
	}
	if src, ok := svc.ReencryptionSource(); ok {
		r.About.Source = src.URI()
	}
	if err := o.verdict(ctx, r, svc, engine, hdfs, log); err != nil {
		return nil, err
	}
	if err := comparisons(ctx, r, engine); err != nil {
		return nil, err
	}
	// The journal is read after the verdict is made, so it contains the verdict.
	if r.Status, err = engine.Status(ctx); err != nil {
		return nil, err
	}
	if r.Journal, err = engine.Journal(ctx); err != nil {
		return nil, err
	}
	if r.Counters, err = engine.UseCounters(ctx); err != nil {
		return nil, err
	}
	if err := keys(ctx, r, svc); err != nil {
		return nil, err
	}
	err = auditHeads(ctx, r, svc)
	r.About.Made = time.Now().UTC().Truncate(time.Second)
	return r, err
}

// verdict makes a verdict by images, or reads one from a file. A file counts only if the journal has that verdict.
func (o *Options) verdict(ctx context.Context, r *evidence.Report, svc *kms.Service, engine *migrate.Engine,
	hdfs string, log io.Writer) error {
	if o.VerdictFile != "" {
		v, err := readVerdict(o.VerdictFile)
		if err == nil {
			err = engine.CheckRecorded(ctx, v)
		}
		if err != nil {
			return fmt.Errorf("--verdict %s: %w", o.VerdictFile, err)
		}
		r.Verdict = v
		r.RecordMissing(&r.Censuses, "the verdict was made before this file; its images were not counted again")
		return nil
	}
	if len(o.Images)+len(o.NameNodes) == 0 {
		const why = "no image was given (--image or --namenode), and no earlier verdict (--verdict)"
		r.RecordMissing(&r.Censuses, why)
		r.RecordMissing(&r.Verdict, why)
		return nil
	}
	v, images, err := o.VerdictAndImages(ctx, svc.Conf.Dir(), hdfs, engine, log)
	if err != nil {
		return err
	}
	r.Verdict, r.Censuses = v, []evidence.Census{}
	for _, m := range images {
		r.Censuses = append(r.Censuses, evidence.Census{Image: m.Name, SHA256: m.Digest, Bytes: m.Bytes,
			Census: m.Report})
	}
	return nil
}

// maxVerdict is the greatest size of a verdict's file, in bytes.
const maxVerdict = 64 << 20

// readVerdict reads the output of claviger migrate verdict -o json.
func readVerdict(path string) (*migrate.Verdict, error) {
	data, err := durable.ReadRegular(path, maxVerdict)
	if err != nil {
		return nil, err
	}
	v := new(migrate.Verdict)
	if err := json.Unmarshal(data, v); err != nil || v.Format != migrate.VerdictFormat {
		return nil, errors.New("it is not the output of claviger migrate verdict -o json")
	}
	return v, nil
}

// comparisons makes the parts that need the source. A source that does not answer, or that is no longer configured, is
// no error: the report says why it lacks them.
func comparisons(ctx context.Context, r *evidence.Report, engine *migrate.Engine) (err error) {
	var failed error
	if r.Plan, failed = engine.Plan(ctx); r.Plan == nil {
		r.RecordMissing(&r.Plan, claviger.Reason(failed))
	}
	if r.Verification, failed = engine.Verify(ctx); r.Verification == nil {
		r.RecordMissing(&r.Verification, claviger.Reason(failed))
	}
	return ctx.Err()
}

// keys asks the HSM how it protects the new versions: those that the migration made, and those to which the keys were
// rolled since.
func keys(ctx context.Context, r *evidence.Report, svc *kms.Service) error {
	p, ok := svc.Primary.(*hsm.Provider)
	if !ok {
		r.RecordMissing(&r.Keys, "the keys are not in an HSM")
		return nil
	}
	var versions []string
	for _, k := range r.Status.Keys {
		of, err := p.Versions(ctx, k.Key)
		if err != nil && !claviger.Is(err, claviger.KeyNotFound) {
			return err
		}
		for _, v := range of {
			versions = append(versions, v.Name)
		}
		for _, m := range k.Versions {
			if m.Target != "" && !slices.Contains(versions, m.Target) {
				versions = append(versions, m.Target)
			}
		}
	}
	list, err := p.Protection(ctx, versions)
	if err != nil {
		return err
	}
	info := p.Info()
	r.Keys = &evidence.Keys{Token: info, Attestation: evidence.NoAttestation(info.Profile), Versions: list}
	return nil
}

// auditHeads reads the heads of the audit log.
func auditHeads(ctx context.Context, r *evidence.Report, svc *kms.Service) error {
	places, err := svc.AuditHeads()
	if err != nil {
		return err
	}
	for _, place := range places {
		h, ok, err := place.Load(ctx)
		if err != nil {
			return fmt.Errorf("the head of the audit log in %s: %w", place.Name(), err)
		}
		if ok {
			r.Audit = append(r.Audit, evidence.AuditHead{Place: place.Name(), Head: h})
		}
	}
	if r.Audit == nil {
		r.RecordMissing(&r.Audit, "there is no audit log with a head on this host: "+
			"claviger.audit.json.file is not set, or nothing was written yet")
	}
	return nil
}
