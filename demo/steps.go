package demo

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/hadoopconf"
	"claviger/provider"
)

// batch is the number of EDEKs that a NameNode sends for re-encryption in one request
// (dfs.namenode.reencrypt.batch.size).
const batch = 1000

// acls are the rules of both KMSs: the NameNode makes EDEKs and opens none, the reader opens EDEKs, and keyadmin
// manages keys. self is the user of the HSM KMS.
func acls(self string) properties {
	users := namenode + "," + reader + "," + keyadmin
	return properties{
		{"hadoop.kms.acl.CREATE", keyadmin},
		{"hadoop.kms.acl.DELETE", keyadmin},
		{"hadoop.kms.acl.ROLLOVER", keyadmin},
		{"hadoop.kms.acl.GET", keyadmin},
		{"hadoop.kms.acl.GET_KEYS", users + "," + self},
		{"hadoop.kms.acl.GET_METADATA", users + "," + self},
		{"hadoop.kms.acl.SET_KEY_MATERIAL", keyadmin},
		{"hadoop.kms.acl.GENERATE_EEK", namenode + "," + self}, // plan tries an EDEK of each key
		{"hadoop.kms.acl.DECRYPT_EEK", reader + "," + self},
		{"hadoop.kms.blacklist.DECRYPT_EEK", namenode},
		{"default.key.acl.MANAGEMENT", keyadmin},
		{"default.key.acl.GENERATE_EEK", namenode},
		{"default.key.acl.DECRYPT_EEK", reader},
		{"default.key.acl.READ", users},
		{"whitelist.key.acl.READ", self},
		{"whitelist.key.acl.DECRYPT_EEK", self},
		{"whitelist.key.acl.GENERATE_EEK", self},
	}
}

// stepSource starts the KT KMS, and makes the keys and the files of its zones.
func (r *run) stepSource(ctx context.Context) error {
	self, err := user.Current()
	if err != nil {
		return err
	}
	dir, err := r.conf("kt-kms", map[string]properties{
		"kms-site.xml": {
			{"hadoop.kms.http.host", "127.0.0.1"},
			{hadoopconf.ProviderURI, "keytrustee://file@" + filepath.Join(r.Dir, "kt-kms", ".keytrustee")},
			{hadoopconf.MetastoreURI, "sqlite://" + filepath.Join(r.Dir, "kt-kms", "claviger.db")},
			{truststore, r.trusteeCert()},
			{"hadoop.kms.proxyuser." + self.Username + ".users", reader},
			{"hadoop.kms.proxyuser." + self.Username + ".hosts", "127.0.0.1"},
			{"claviger.audit.file", filepath.Join(r.Dir, "kt-kms", "kms-audit.log")},
		},
		ktsSite: {
			{"cloudera.trustee.keyprovider.hostname-ACTIVE", strings.TrimPrefix(r.trust.base, "https://")},
			{"cloudera.trustee.keyprovider.org", org},
			{"cloudera.trustee.keyprovider.auth", r.secret},
		},
		"kms-acls.xml": acls(self.Username),
	})
	if err != nil {
		return err
	}
	r.printf("the KT KMS makes its OpenPGP identity at its first start, and registers with organization %s", org)
	if r.source, err = r.startKMS(ctx, "KT KMS", dir); err != nil {
		return err
	}
	r.printf("the KT KMS serves at %s, %v after its start", r.source.uri, r.source.took.Round(time.Millisecond))
	if err := r.makeZones(ctx); err != nil {
		return err
	}
	for _, z := range zones {
		r.printf("key %s, %d bits: %s", z.name, z.bits, counts(r.versions(z.name)))
	}
	return nil
}

// makeZones makes the keys and the files of the zones at the source. The key of the first zone has two versions. One
// more file of it is then deleted, and remains in a snapshot.
func (r *run) makeZones(ctx context.Context) error {
	for _, z := range zones {
		spec := provider.Spec{Name: z.name, Cipher: claviger.DefaultCipher, BitLength: z.bits,
			Attributes: map[string]string{"team": z.team}}
		if z.desc != "" {
			spec.Description = &z.desc
		}
		err := r.as(ctx, r.source, keyadmin, func(k KMS) error {
			_, err := k.Create(ctx, spec)
			return err
		})
		if err != nil {
			return err
		}
		if err := r.write(ctx, r.source, z.name, r.EDEKs/2); err != nil {
			return err
		}
	}
	err := r.as(ctx, r.source, keyadmin, func(k KMS) error {
		_, err := k.Roll(ctx, zones[0].name, nil)
		return err
	})
	if err != nil {
		return err
	}
	for _, z := range zones {
		if err := r.write(ctx, r.source, z.name, r.EDEKs-r.EDEKs/2); err != nil {
			return err
		}
	}
	if err := r.write(ctx, r.source, zones[0].name, 1); err != nil {
		return err
	}
	last := len(r.files) - 1
	r.deleted, r.files = r.files[last], r.files[:last]
	return nil
}

func (r *run) stepTrusteeFiles(context.Context) error {
	from, to := filepath.Join(r.Dir, "kt-kms"), filepath.Join(r.Dir, "hsm")
	for _, f := range []string{ktsSite, ".keytrustee/keytrustee.conf", ".keytrustee/pubring.gpg",
		".keytrustee/secring.gpg"} {
		if err := copyFile(filepath.Join(from, f), filepath.Join(to, f)); err != nil {
			return err
		}
		r.printf("copied %s", f)
	}
	r.printf("with these files the HSM KMS itself opens old EDEKs with the trustee's keys, even if the KT KMS is down")
	return nil
}

func (r *run) stepTrust(context.Context) error {
	to := filepath.Join(r.Dir, "hsm", "trustee.pem")
	r.printf("the trustee's certificate goes into the truststore of the HSM KMS, %s; JKS and PKCS#12 stores of "+
		"keytool work too", to)
	return copyFile(r.trusteeCert(), to)
}

func (r *run) stepConfigure(ctx context.Context) error {
	self, err := user.Current()
	if err != nil {
		return err
	}
	token, err := r.NewToken(filepath.Join(r.Dir, "token-kms"), "claviger-demo")
	if err != nil {
		return fmt.Errorf("making a SoftHSM token: %w", err)
	}
	r.token = token
	dir, err := r.conf("hsm", map[string]properties{"kms-site.xml": r.siteDuring(),
		"kms-acls.xml": acls(self.Username)})
	if err != nil {
		return err
	}
	if _, err := r.cli(ctx, 0, "hsm", "init", "--module", token.Module, "--token", token.Label, "--pin-file",
		token.PINFile,
		"--profile", "softhsm", filepath.Join(dir, "luna.keystore")); err != nil {
		return err
	}
	for _, p := range r.siteDuring() {
		r.printf("%s = %s", p.name, p.value)
	}
	return nil
}

// siteAfter is the kms-site.xml of the HSM KMS after the migration.
func (r *run) siteAfter() properties {
	dir := filepath.Join(r.Dir, "hsm")
	return properties{
		{"hadoop.kms.http.host", "127.0.0.1"},
		{hadoopconf.ProviderURI, "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore")},
		{hadoopconf.MetastoreURI, "sqlite://" + filepath.Join(dir, "claviger.db")},
		{"claviger.audit.file", filepath.Join(dir, "kms-audit.log")},
	}
}

// siteDuring is siteAfter with the source of the migration, as in step 5.
func (r *run) siteDuring() properties {
	dir := filepath.Join(r.Dir, "hsm")
	return r.siteAfter().with(
		property{hadoopconf.ProviderURI, "cloudera.hsmkp://file@" + filepath.Join(dir, "luna.keystore") +
			",keytrustee://file@" + filepath.Join(dir, ".keytrustee")},
		property{hadoopconf.TrusteeConf, filepath.Join(dir, ktsSite)},
		property{truststore, filepath.Join(dir, "trustee.pem")},
		property{hadoopconf.SourceURI, r.source.uri},
		property{hadoopconf.ReencryptionEnable, "true"},
	)
}

// rewrite writes another kms-site.xml into the folder of the HSM KMS.
func (r *run) rewrite(site properties) (dir string, err error) {
	return r.conf("hsm", map[string]properties{"kms-site.xml": site})
}

func (r *run) stepPlan(ctx context.Context) error {
	_, err := r.cli(ctx, 0, "migrate", "plan", "--conf", filepath.Join(r.Dir, "hsm"), "--as-user", reader)
	if err != nil {
		return err
	}
	_, err = r.rewrite(r.siteDuring().with(property{hadoopconf.InitiateMigration, "true"}))
	r.printf("%s = true", hadoopconf.InitiateMigration)
	return err
}

func (r *run) stepCaches(context.Context) error {
	r.printf("not needed: a batch is one call of the HSM, so large caches work also with a distant HSM;")
	r.printf("ZooKeeper is not needed either: there is one node, without Kerberos")
	return nil
}

func (r *run) stepStart(ctx context.Context) (err error) {
	if r.hsm, err = r.startKMS(ctx, "HSM KMS", filepath.Join(r.Dir, "hsm")); err != nil {
		return err
	}
	r.printf("the HSM KMS has migrated the keys and serves at %s, %v after its start", r.hsm.uri,
		r.hsm.took.Round(time.Millisecond))
	r.printf("from now on the NameNode and the users send requests to the HSM KMS only")
	return nil
}

func (r *run) stepCompare(ctx context.Context) error {
	var names []string
	for _, z := range zones {
		names = append(names, z.name)
	}
	return r.as(ctx, r.source, keyadmin, func(src KMS) error {
		return r.as(ctx, r.hsm, keyadmin, func(dst KMS) error {
			was, err := src.Metadata(ctx, names...)
			if err != nil {
				return err
			}
			is, err := dst.Metadata(ctx, names...)
			if err != nil {
				return err
			}
			for i, name := range names {
				if was[i] == nil || is[i] == nil {
					return fmt.Errorf("key %s is missing: at the source %t, at the HSM KMS %t", name, was[i] == nil,
						is[i] == nil)
				}
				if a, b := describe(was[i]), describe(is[i]); a != b {
					return fmt.Errorf("key %s is\n  %s\nat the source, and\n  %s\nat the HSM KMS", name, a, b)
				}
				r.printf("%s", describe(is[i]))
				if err := r.compareVersions(ctx, name, src, dst); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// compareVersions checks that the source and the HSM KMS share no version of a key, and that the HSM KMS returns no
// material.
func (r *run) compareVersions(ctx context.Context, name string, src, dst KMS) error {
	old, err := src.Versions(ctx, name)
	if err != nil {
		return err
	}
	fresh, err := dst.Versions(ctx, name)
	if err != nil {
		return err
	}
	for _, v := range fresh {
		if v.Material != nil {
			return fmt.Errorf("the HSM KMS returned material of %s", v.Name)
		}
		if slices.ContainsFunc(old, func(o claviger.KeyVersion) bool { return o.Name == v.Name }) {
			return fmt.Errorf("version %s is at the source and at the HSM KMS", v.Name)
		}
	}
	r.printf("  %s at the source, %s in the HSM", versionNames(old), versionNames(fresh))
	return nil
}

func (r *run) stepServe(ctx context.Context) error {
	if err := r.openAll(ctx, r.hsm); err != nil {
		return err
	}
	for _, z := range zones {
		if err := r.write(ctx, r.hsm, z.name, r.EDEKs/4); err != nil {
			return err
		}
		r.printf("new files in %s: %s", z.name, counts(r.versions(z.name)))
	}
	// The NameNode's user must not open the EDEKs that it stores.
	err := r.as(ctx, r.hsm, namenode, func(k KMS) error {
		_, err := k.Unwrap(ctx, r.files[0].zone, "", []claviger.EDEK{r.files[0].edek})
		return err
	})
	if !claviger.Is(err, claviger.Denied) {
		return fmt.Errorf("the NameNode's user must be refused by the ACL, and was not: %w", err)
	}
	r.printf("%s may not open files, here and through the source", namenode)
	return nil
}

func (r *run) stepReencrypt(ctx context.Context) error {
	return r.as(ctx, r.hsm, namenode, func(k KMS) error {
		for _, z := range zones {
			var at []int // indexes of the zone's files in r.files
			for i, f := range r.files {
				if f.zone == z.name {
					at = append(at, i)
				}
			}
			began := time.Now()
			for part := range slices.Chunk(at, batch) {
				old := make([]claviger.EDEK, len(part))
				for i, n := range part {
					old[i] = r.files[n].edek
				}
				fresh, err := k.Reencrypt(ctx, z.name, old)
				if err != nil {
					return err
				}
				for i, n := range part {
					if string(fresh[i].IV) != string(old[i].IV) {
						return errors.New("re-encryption changed an IV")
					}
					r.files[n].edek = fresh[i]
				}
			}
			vs := r.versions(z.name)
			if len(vs) != 1 {
				return fmt.Errorf("zone %s has more than one version after its re-encryption: %s", z.name, counts(vs))
			}
			r.reencrypted[z.name] = times{began, time.Now()}
			r.printf("%s: %s, in %v", z.name, counts(vs), since(began))
		}
		return nil
	})
}

func (r *run) stepStatus(ctx context.Context) error {
	dir, err := r.rewrite(r.siteDuring())
	if err != nil {
		return err
	}
	if err := r.hsm.stop(); err != nil {
		return err
	}
	if r.hsm, err = r.startKMS(ctx, "HSM KMS", dir); err != nil {
		return err
	}
	r.printf("restarted without %s; it serves %v after its start", hadoopconf.InitiateMigration,
		r.hsm.took.Round(time.Millisecond))
	for _, sub := range []string{"status", "verify"} {
		if _, err := r.cli(ctx, 0, "migrate", sub, "--conf", dir); err != nil {
			return err
		}
	}
	r.printf("")
	r.printf("versions of the source were used a moment ago, so finish is refused:")
	_, err = r.cli(ctx, 3, "migrate", "finish", "--conf", dir)
	return err
}

func (r *run) stepSourceGone(ctx context.Context) error {
	if err := errors.Join(r.source.stop(), r.trust.stop(), r.keyhsm.stop()); err != nil {
		return err
	}
	r.printf("KT KMS, Key Trustee Server and Key HSM are stopped")
	return r.openAll(ctx, r.hsm)
}

func (r *run) stepFinish(ctx context.Context) error {
	dir, err := r.rewrite(r.siteAfter())
	if err != nil {
		return err
	}
	if err := r.hsm.stop(); err != nil {
		return err
	}
	// The folder was copied in step 2. Only the administrator knows that no KMS uses the copy, and types that.
	typed := "no KMS needs the private key in " + filepath.Join(dir, ".keytrustee") + "\n" +
		filepath.Join(dir, ktsSite) + "\n"
	if _, err := r.cliWith(ctx, r.token.Env, typed, 0, "migrate", "finish", "--conf", dir, "--verdict",
		"--unused-for", "0s", "--shred"); err != nil {
		return err
	}
	if r.hsm, err = r.startKMS(ctx, "HSM KMS", dir); err != nil {
		return err
	}
	return r.openAll(ctx, r.hsm)
}

func (r *run) report(ctx context.Context) error {
	fmt.Fprintf(r.Out, "\n== Report\n")
	for _, z := range zones {
		r.printf("%-10s %4d files, all at %s", z.name, len(r.byZone()[z.name]), counts(r.versions(z.name)))
	}
	if _, err := r.cli(ctx, 0, "migrate", "status", "--conf", filepath.Join(r.Dir, "hsm")); err != nil {
		return err
	}
	r.printf("")
	r.printf("done in %v: no key material was moved into the HSM or out of it, and no file was unreadable at any time",
		time.Since(r.began).Round(10*time.Millisecond))
	return nil
}

// describe returns the metadata of a key as one line.
func describe(m *claviger.Metadata) string {
	desc := "no description"
	if m.Description != nil {
		desc = fmt.Sprintf("%q", *m.Description)
	}
	var attrs []string
	for k, v := range m.Attributes {
		attrs = append(attrs, k+"="+v)
	}
	slices.Sort(attrs)
	return fmt.Sprintf("%s: %s, %d bits, %s, created %s, %d version(s), %s",
		m.Name, m.Cipher, m.BitLength, desc, m.Created.UTC().Format("2006-01-02T15:04:05.000Z"), m.Versions,
		strings.Join(attrs, " "))
}

// versionNames returns the names of versions, separated by commas.
func versionNames(vs []claviger.KeyVersion) string {
	names := make([]string, len(vs))
	for i, v := range vs {
		names[i] = v.Name
	}
	return strings.Join(names, ", ")
}

// counts formats numbers of files by version, as "150 x k@0, 150 x k@1".
func counts(m map[string]int) string {
	var parts []string
	for v, n := range m {
		parts = append(parts, fmt.Sprintf("%d x %s", n, v))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
