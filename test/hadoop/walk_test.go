package hadoop

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"claviger/kms/kmstest"
)

// The users of the migrated cluster.
const (
	keyAdmin = "keyadmin" // makes and rolls keys
	alice    = "alice"    // reads and writes files in the zones
	bob      = "bob"      // may not decrypt
	migrator = "mig"      // our server at the source
)

// siteACLs allows alice and bob to decrypt, but bob no key. alice reads metadata, which a writer of ORC files
// needs.
func siteACLs() Conf {
	acls := SiteACLs(keyAdmin, alice)
	acls["hadoop.kms.acl.DECRYPT_EEK"] += "," + bob
	acls["hadoop.kms.acl.GET_METADATA"] += "," + alice
	acls["default.key.acl.READ"] += "," + alice
	return acls
}

// sourceACLs is siteACLs with the rights of the server that migrates.
func sourceACLs() Conf {
	acls := siteACLs()
	GrantMigration(acls, migrator)
	return acls
}

// sourceSite lets the migrator decrypt on behalf of the users who read files, and of nobody else.
func sourceSite() Conf {
	return Conf{
		"hadoop.kms.proxyuser." + migrator + ".users": alice + "," + bob,
		"hadoop.kms.proxyuser." + migrator + ".hosts": "127.0.0.1",
	}
}

// zones maps each zone to its key.
var zones = map[string]string{"/finance": "fin.key", "/research": "res.key"}

// walk is an HDFS with files in zones, and their true content.
type walk struct {
	t       *testing.T
	cluster *Cluster
	local   string              // folder with the true content; each zone has a subfolder
	files   map[string][]string // names of the files, by zone
	old     []string            // the key versions of the files from before the migration
	orc     *orc
	admin   *Client        // of keyAdmin, with the source as its KMS; -provider names another one
	first   map[string]int // by key, the number of the first version here
	random  *rand.Rand
}

func (w *walk) client(user string) *Client { return NewClient(w.t, user, w.cluster.Conf()) }

// write writes n new files of different sizes into a zone, as alice.
func (w *walk) write(c *Client, zone, prefix string, n int) {
	w.t.Helper()
	dir := filepath.Join(w.local, zone)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	put := []string{"-put"}
	for i := range n {
		// Sizes around the block size of AES and that of HDFS, and an empty file.
		size := []int{0, 1, 15, 16, 17, 1000, 65536, 200001}[i%8]
		content := make([]byte, size)
		for j := range content {
			content[j] = byte(w.random.Uint32())
		}
		name := fmt.Sprintf("%s-%02d", prefix, i)
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			w.t.Fatal(err)
		}
		put = append(put, filepath.Join(dir, name))
		w.files[zone] = append(w.files[zone], name)
	}
	c.FsShell(append(put, zone+"/")...)
}

// readAll reads every file of every zone and compares it.
func (w *walk) readAll(c *Client, when string) {
	w.t.Helper()
	begun := time.Now()
	n := 0
	for zone, names := range w.files {
		got := w.t.TempDir()
		c.FsShell("-get", zone+"/*", got)
		for _, name := range names {
			want, err := os.ReadFile(filepath.Join(w.local, zone, name))
			if err != nil {
				w.t.Fatal(err)
			}
			have, err := os.ReadFile(filepath.Join(got, name))
			if err != nil {
				w.t.Errorf("%s: %v", when, err)
			} else if string(have) != string(want) {
				w.t.Errorf("%s: %s/%s reads differently: %d bytes, want %d", when, zone, name, len(have), len(want))
			}
			n++
		}
	}
	w.t.Logf("%s: %d files read and compared in %.1fs", when, n, time.Since(begun).Seconds())
}

// versions returns the key version of each file in a zone.
func (w *walk) versions(c *Client, zone string) map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for _, name := range w.files[zone] {
		key, version := c.FileKey(zone + "/" + name)
		if key != zones[zone] {
			w.t.Errorf("%s/%s: key %q, want %q", zone, name, key, zones[zone])
		}
		all[name] = version
	}
	return all
}

// distinct lists the versions in the result of versions.
func distinct(versions map[string]string) []string {
	return slices.Compact(slices.Sorted(maps.Values(versions)))
}

// listed returns the lines of `hadoop key list -metadata` at a KMS.
func listed(c *Client, providerURI string) []string {
	c.t.Helper()
	var lines []string
	for line := range strings.Lines(c.KeyShell("list", "-metadata", "-provider", providerURI)) {
		if strings.Contains(line, " : cipher: ") {
			// Attributes are a set, so their order may differ.
			head, attributes, _ := strings.Cut(strings.TrimSpace(line), "attributes: ")
			set := strings.Split(attributes, ", ")
			slices.Sort(set)
			lines = append(lines, head+strings.Join(set, ", "))
		}
	}
	slices.Sort(lines)
	return lines
}

// origin is the KMS from which a test migrates.
type origin struct {
	kms *KMS
	// beside returns further properties for the kms-site.xml of the server that migrates. dir is its configuration
	// folder. nil: no further properties.
	beside func(dir string) Conf
	// early is true if that server decrypts old EDEKs without this KMS, which therefore ends before any old file
	// is read.
	early bool
	// opaque is true if the names of versions are not numbers. ORC cannot use such versions.
	opaque bool
	// retire ends the rest of the source at the end; nil: there is no rest.
	retire func()
}

// stop ends the KMS.
func (o origin) stop(t *testing.T) {
	t.Helper()
	if code := o.kms.Stop(); code != 143 && code != 0 { // 143: a JVM ended by SIGTERM
		t.Errorf("%s ended with status %d", o.kms.Name, code)
	}
}

// TestMigrationFromAJavaKMS migrates a cluster from a Java KMS to an HSM KMS of ours.
func TestMigrationFromAJavaKMS(t *testing.T) {
	Require(t)
	migrateCluster(t, origin{kms: StartJavaKMS(t, KMSOptions{ACLs: sourceACLs(), Site: sourceSite()})})
}

// TestMigrationFromATrusteeKMS migrates a cluster from a Key Trustee KMS to an HSM KMS, which has a copy of the
// .keytrustee folder and decrypts old EDEKs with keys that it fetches from the Key Trustee Server.
func TestMigrationFromATrusteeKMS(t *testing.T) {
	Require(t)
	kt := StartTrustee(t)
	trust := kt.Truststore(t, "PKCS12")
	kms := kt.StartTrusteeKMS(t, filepath.Join(t.TempDir(), ".keytrustee"), sourceACLs(), sourceSite().With(trust))
	migrateCluster(t, origin{
		kms: kms.KMS,
		beside: func(dir string) Conf {
			ktkms := filepath.Join(dir, "ktkms")
			if err := os.Mkdir(ktkms, 0o700); err != nil {
				t.Fatal(err)
			}
			folder := kms.CopyTo(t, ktkms)
			return trust.With(Conf{
				"hadoop.kms.key.provider.uri": hsmOnly(dir)["hadoop.kms.key.provider.uri"] +
					",keytrustee://file@" + folder, "cloudera.hsmkp.ktkms.config.dir": ktkms,
			})
		},
		early:  true,
		opaque: true,
		retire: func() {
			if code := kt.Stop(); code != 0 {
				t.Errorf("claviger trustee ended with status %d on SIGTERM", code)
			}
		},
	})
}

// withNext returns the metadata of keys after the migration, if the source numbers its versions: each key has one
// more version.
func withNext(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = versionField.ReplaceAllStringFunc(l, func(m string) string {
			n, _ := strconv.Atoi(m[len("version: "):])
			return fmt.Sprintf("version: %d", n+1)
		})
	}
	return out
}

var versionField = regexp.MustCompile(`version: \d+`)

// migrateCluster migrates a cluster from a KMS to an HSM KMS of ours, by the steps of the procedure. Everything else is
// stock Hadoop. It reads every file after every step.
func migrateCluster(t *testing.T, source origin) {
	t.Helper()
	w := &walk{
		t: t,
		// By default, a NameNode keeps up to 500 EDEKs of an old version after a roll. With a smaller number, both
		// versions appear in a few files.
		cluster: NewCluster(t, source.kms.ProviderURI(), Conf{
			"hadoop.security.kms.client.encrypted.key.cache.size":          "4",
			"hadoop.security.kms.client.encrypted.key.cache.low-watermark": "0.5",
		}),
		local:  t.TempDir(),
		files:  map[string][]string{},
		random: rand.New(rand.NewPCG(1, 2)),
	}
	w.orc, w.first = startORC(t, alice), map[string]int{}
	w.before(source)
	conf, env := clavigerConf(t, source)

	port := FreePorts(t, 1)[0]
	ourKMS := StartClaviger(t, ClavigerOptions{Conf: conf, Env: env, Port: port})
	want := listed(w.admin, source.kms.ProviderURI())
	if !source.opaque {
		want = withNext(want)
	}
	if got := listed(w.admin, ourKMS.ProviderURI()); len(want) != len(zones) || !slices.Equal(got, want) {
		t.Errorf("metadata after the migration:\n%s\nat the source:\n%s", strings.Join(got, "\n"),
			strings.Join(want, "\n"))
	}
	// While the source runs, the server asks it for other keys.
	if output := ClavigerExit(t, env, 3, "migrate", "finish", "--conf", conf); !strings.Contains(output,
		"it is not shown that all EDEKs are re-encrypted") || strings.Contains(output, "was not migrated") {
		t.Errorf("finish, too early, says\n%s", output)
	}
	w.cluster.SetKeyProvider(ourKMS.ProviderURI())
	w.cluster.Restart()
	if source.early {
		source.stop(t)
	}
	super, user := w.client(HDFSUser), w.client(alice)
	w.beside(ourKMS, super, user, func(reencrypt func()) { w.verdicts(super, conf, env, reencrypt) })
	if !source.early {
		source.stop(t)
	}
	if source.retire != nil {
		source.retire()
	}
	w.readAll(user, "without the source")
	w.orc.readAll(ourKMS.ProviderURI(), w.first, false)
	w.orc.write(ourKMS.ProviderURI(), "fin.key", w.first["fin.key"]+1)

	// The last steps of the procedure: remove the properties of the migration, and start the server without them
	// at the same address. From then on it makes EDEKs without the HSM.
	if code := ourKMS.Stop(); code != 0 {
		t.Errorf("claviger kms ended with status %d on SIGTERM", code)
	}
	hsmOnly(conf).With(Conf{"claviger.hsm.generate": "implied"}).Write(t, filepath.Join(conf, "kms-site.xml"))
	// The last report about the source names data that a re-encryption of zones does not change, like the old ORC
	// files.
	ended := Claviger(t, env, "migrate", "finish", "--conf", conf, "--verdict", "--unused-for", "0s")
	for _, want := range []string{"no EDEK of HDFS needs the source", "ORC files with encrypted columns", "Ozone",
		"/.reserved/raw", "The source had no other keys at the last comparison", "The migration is finished."} {
		if !strings.Contains(ended, want) {
			t.Errorf("finish does not say %q:\n%s", want, ended)
		}
	}
	again := StartClaviger(t, ClavigerOptions{Conf: conf, Env: env, Port: port})
	w.orc.readAll(again.ProviderURI(), w.first, false)
	c := w.client(alice)
	w.readAll(c, "with the migration's properties removed")
	w.write(c, "/finance", "last", 6) // the NameNode had at most 4 EDEKs from before
	w.readAll(c, "at the end")
	if _, figures := kmstest.Get(t, again.URL, "/metrics", ""); !impliedSome.MatchString(figures) {
		t.Error("no EDEK was made without the HSM")
	}
}

var impliedSome = regexp.MustCompile(`(?m)^claviger_edeks_implied_total [1-9]`)

// before makes the cluster of a site that uses the source: two zones, one with a rolled key, and files with every
// version.
func (w *walk) before(source origin) {
	t := w.t
	t.Helper()
	uri := source.kms.ProviderURI()
	admin := NewClient(t, keyAdmin, Conf{"hadoop.security.key.provider.path": uri})
	w.admin = admin
	admin.KeyShell("create", "fin.key", "-size", "128", "-description", "books of the finance department", "-attr",
		"owner=fin", "-attr", "class=secret")
	admin.KeyShell("create", "res.key", "-size", "256", "-description", "Grüße: <&>\"", "-attr", "owner=res")

	w.cluster.Start()
	super, user := w.client(HDFSUser), w.client(alice)
	for zone, key := range zones {
		super.FsShell("-mkdir", zone)
		super.CryptoAdmin("-createZone", "-keyName", key, "-path", zone)
		super.FsShell("-chown", alice, zone)
		w.write(user, zone, "v0", 8)
	}
	if !source.opaque {
		w.orc.write(uri, "fin.key", 0)
		w.orc.write(uri, "res.key", 0)
	}
	admin.KeyShell("roll", "fin.key")
	if w.first["fin.key"], w.first["res.key"] = 2, 1; source.opaque {
		w.first["res.key"] = 0 // as many as there, from 0 on: the current ones are fin.key@1, res.key@0
		w.first["fin.key"] = 1
	} else {
		w.orc.write(uri, "fin.key", 1)
		w.orc.readAll(uri, w.first, true)
	}
	w.write(user, "/finance", "v1", 16)
	if got := distinct(w.versions(super, "/finance")); len(got) != 2 {
		t.Fatalf("the files in /finance are under %q, want both versions of fin.key", got)
	}
	for zone := range zones {
		w.old = append(w.old, distinct(w.versions(super, zone))...)
	}
	w.readAll(user, "at the source")
	w.leaveBehind(super, user)
}

// beside runs the tests while HDFS uses our KMS and files still have the source's keys. It calls judge with the
// re-encryption of the zones.
func (w *walk) beside(ourKMS *KMS, super, user *Client, judge func(reencrypt func())) {
	t := w.t
	t.Helper()
	w.readAll(user, "old files with the source's keys")
	// The superuser may see the files, but is blacklisted from decrypting. The ACL of the operation allows bob,
	// but the ACL of the key does not.
	super.FsShell("-chmod", "-R", "755", "/finance")
	super.MustFail("fs", "-cat", "/finance/v0-05")
	w.client(bob).MustFail("fs", "-cat", "/finance/v0-05")

	firstOfOurs := map[string]string{}
	for zone := range zones {
		w.write(user, zone, "new", 8)
		for name, v := range w.versions(super, zone) {
			if strings.HasPrefix(name, "new-") == slices.Contains(w.old, v) {
				t.Errorf("%s/%s is under %s", zone, name, v)
			}
			if strings.HasPrefix(name, "new-") {
				firstOfOurs[zone] = v
			}
		}
	}

	// New data use our version, and not the last version of the source.
	for _, key := range zones {
		w.orc.write(ourKMS.ProviderURI(), key, w.first[key])
	}
	w.orc.readAll(ourKMS.ProviderURI(), w.first, true)

	w.admin.KeyShell("roll", "fin.key", "-provider", ourKMS.ProviderURI())
	w.orc.write(ourKMS.ProviderURI(), "fin.key", w.first["fin.key"]+1)
	judge(func() {
		for zone := range zones {
			super.ReencryptZone(zone)
		}
	})
	for zone, key := range zones {
		got := distinct(w.versions(super, zone))
		if len(got) != 1 || slices.Contains(w.old, got[0]) || !strings.HasPrefix(got[0], key+"@") {
			t.Errorf("after the re-encryption the files in %s are under %q, want one version of ours", zone, got)
		}
		if rolled := key == "fin.key"; len(got) == 1 && (got[0] != firstOfOurs[zone]) != rolled {
			t.Errorf("%s: re-encrypted under %s; before it new files were under %s; rolled in between: %v", zone,
				got[0], firstOfOurs[zone], rolled)
		}
	}
	w.readAll(user, "re-encrypted")
}
