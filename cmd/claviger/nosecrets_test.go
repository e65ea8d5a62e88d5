package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
	"claviger/metastore/sqlite"
)

// secretSpellings are URIs with a password, as somebody may write them by mistake, for XML.
var secretSpellings = []string{
	"jceks://file@/x?pass%77ord=hunter2",
	"jceks://file@/x?password=hunter2",
	"jceks://file@/x%3Fpassword%3Dhunter2",
	"kms://user:hunter2@h:9600/kms",
	"kms://https@user%3Ahunter2%40h:9600/kms",
	"pkcs11:token=a?PIN-VALUE=hunter2",
	"pkcs11:token=a;pin%2dvalue=hunter2?module-path=/x.so",
	"user:hunter2@h",
	"//user:hunter2@h/x",
	"http://h/x, postgresql://user:hunter2@h/x?sslmode=none",
	"postgresql://h/x?%70assword=hunter2&amp;sslmode=none",
	"ldap://h?credential=hunter2",
	"cloudera.hsmkp://file@/x#pin=hunter2",
	"postgresql//u:hunter2@127.0.0.1:1/x",
	"postgresql:/u:hunter2@127.0.0.1:1/x",
	"postgresql://u@127.0.0.1:1/x?passwd%3Dhunter2",
	"host=127.0.0.1 user=u password=hunter2",
}

// TestNoSecretIsShown: a URI with a password in the place of any property's value reaches
// neither the log nor the error of the start.
func TestNoSecretIsShown(t *testing.T) {
	dir := t.TempDir()
	settings := wrongSettings(t, dir)
	namesURI := regexp.MustCompile(`(?i)ur[il]|path|provider|connection|ensemble|syslog|file|store`)
	for i, k := range hadoopconf.KMS {
		with := wrongValues[k.Name].with
		if with == "" {
			with = "plain"
		}
		n := 1
		if namesURI.MatchString(k.Name) {
			n = 4
		}
		for j := range n {
			value := secretSpellings[(i+4*j)%len(secretSpellings)] // all, over the properties
			log, err := startWith(t, dir, settings[with], strings.Replace(k.Name, "*", "x", 1), value)
			if err != nil {
				log += "\n" + err.Error()
			}
			for line := range strings.Lines(log) {
				if strings.Contains(line, "hunter2") {
					t.Errorf("%s = %s shows the password: %s", k.Name, value, line)
				}
			}
		}
	}
}

// TestNoSecretOfACommandIsShown: nor does a command that takes the place of a store show the
// password in it.
func TestNoSecretOfACommandIsShown(t *testing.T) {
	dir := t.TempDir()
	kmstest.WriteSite(t, dir, map[string]string{hadoopconf.MetastoreURI: "sqlite://" + filepath.Join(dir, "c.db")})
	st, err := sqlite.Open(t.Context(), filepath.Join(dir, "c.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	for _, to := range append([]string{"jdbc:postgresql://127.0.0.1:1/x?user=u&password=hunter2",
		"postgresql:u:hunter2@127.0.0.1:1/x"}, secretSpellings...) {
		out, err := command(t, "metastore", "copy", "--conf", dir, "--to", to)
		if err == nil || !strings.Contains(out+err.Error(), "--to") {
			t.Errorf("--to %s: %v\n%s", to, err, out)
		}
		if strings.Contains(out+err.Error(), "hunter2") {
			t.Errorf("--to %s shows the password: %v\n%s", to, err, out)
		}
	}
}
