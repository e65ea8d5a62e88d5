package builtin

import (
	"strings"

	"claviger/hadoopconf"
	"claviger/metastore/location"
	"claviger/pkcs11"
	"claviger/provider"
)

// Files returns the files of a configuration whose owner is the user that the server runs as: the metastore, the first
// provider's keystore file in a Java format, and the file with the PIN of its token. It skips files that it cannot
// read; the server reports them when it starts.
func Files(conf *hadoopconf.Conf) (files []string) {
	if place, err := location.Of(conf); err == nil && place.File != "" {
		files = append(files, place.File)
	}
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return files
	}
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
