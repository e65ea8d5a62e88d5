package kms

import (
	"regexp"
	"strings"
	"testing"

	"claviger/hadoopconf"
	"claviger/kms/kmstest"
)

// TestNoSecretIsShown: if the value of any property is a URI with a password, neither the log
// nor the error of the start shows the password.
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
			value := kmstest.PasswordURIs[(i+4*j)%len(kmstest.PasswordURIs)] // over all properties, each URI is used
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
