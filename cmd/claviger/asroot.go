package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"claviger/hadoopconf"
	"claviger/metastore/location"
	"claviger/pkcs11"
	"claviger/provider"
)

// effectiveUser is this process's; tests change it.
var effectiveUser = os.Geteuid

// notAsRoot refuses to write as root beside files of another user. What root makes is
// root's: a keystore file that is replaced, a store that is restored, the objects of a
// token that keeps them in files, as SoftHSM does. The server, as that other user, could
// not read them, and a PKCS#11 library shows them to it as absent. Files that are not
// there count by their folder. It judges no other user: what he may not write fails.
func notAsRoot(files ...string) error {
	if effectiveUser() != 0 {
		return nil
	}
	for _, file := range files {
		st, err := os.Stat(file)
		if err != nil {
			file = filepath.Dir(file)
			if st, err = os.Stat(file); err != nil {
				continue // who opens it has more to say
			}
		}
		owner, ok := st.Sys().(*syscall.Stat_t)
		if !ok || owner.Uid == 0 || st.IsDir() && st.Mode()&os.ModeSticky != 0 {
			continue
		}
		name := strconv.FormatUint(uint64(owner.Uid), 10)
		as := "#" + name // as sudo takes a number
		if u, err := user.LookupId(name); err == nil {
			name, as = u.Username, u.Username
		}
		return &exitError{exitRefused,
			fmt.Errorf("this process runs as root, and %s belongs to user %s, whose server could not read what root makes (files, and objects of a token that keeps them in files); nothing was done: run it as that user (sudo -u '%s' ...), or, where root is to run the server, chown -R root %s",
				file, name, as, file)}
	}
	return nil
}

// giveToOwner gives a file that root has made to the owner of another, who is to read it.
func giveToOwner(made, of string) error {
	if effectiveUser() != 0 {
		return nil
	}
	st, err := os.Stat(of)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	return os.Chown(made, int(owner.Uid), int(owner.Gid))
}

// ownFiles are the files of a configuration that tell which user the server runs as:
// the metastore, the keystore file of a Java format, and the file with the PIN.
func ownFiles(conf *hadoopconf.Conf) (files []string) {
	if place, err := location.Of(conf); err == nil && place.File != "" {
		files = append(files, place.File)
	}
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return files // who opens them says so
	}
	// What cannot be read, the server's start tells of.
	var token pkcs11.Config
	file, err := provider.UnnestPath(list[0])
	switch scheme, _, _ := strings.Cut(strings.ToLower(list[0]), ":"); {
	case scheme == "pkcs11":
		token, _, err = pkcs11.ParseURI(list[0])
	case err != nil:
		return files
	case scheme == "jceks" || scheme == "localjceks":
		files = append(files, file)
	case scheme == "cloudera.hsmkp":
		token, _, err = pkcs11.ReadKeystoreFile(file)
	}
	if err == nil && token.PINFile != "" {
		files = append(files, token.PINFile)
	}
	return files
}
