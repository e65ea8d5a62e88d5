package secret

import (
	"os"
	"strings"
	"testing"
)

// TestCommonFolders: no advice opens or gives away a home folder or a folder of the system.
func TestCommonFolders(t *testing.T) {
	u := User{Name: "kms", uid: 4711, groups: []int{4711}}
	for _, folder := range []string{"/", "/root", "/etc", "/tmp", "/usr", "/var/lib"} {
		info, err := os.Stat(folder)
		if err != nil {
			continue
		}
		for _, need := range []right{toEnter, toList, toMake} {
			cure := u.cures(folder, info, 0, 0, need)
			if strings.Contains(cure, "chown ") || strings.Contains(cure, "chgrp ") ||
				strings.Contains(cure, "chmod ") || strings.Contains(cure, "usermod ") ||
				!strings.Contains(cure, "SOFTHSM2_CONF") {
				t.Errorf("%s, %s: %s", folder, need.verb, cure)
			}
		}
	}
	for path, want := range map[string]bool{"/home/alice": true, "/home/alice/kms": false, "/etc/claviger": false,
		"/var/lib/claviger": false, "/root/": true} {
		if commonFolder(path, 4711) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}
