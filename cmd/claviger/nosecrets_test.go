package main

import (
	"regexp"
	"strings"
	"testing"

	"claviger/hadoopconf"
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
