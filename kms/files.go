package kms

import (
	"path/filepath"
	"strings"

	"claviger/hadoopconf"
	"claviger/metastore/location"
	"claviger/provider"
	"claviger/secret"
)

// SecretFiles returns the files of a KMS's configuration that other users of this machine must not read or change.
func SecretFiles(conf *hadoopconf.Conf) []secret.File { return secretFiles(conf) }

// ReadFiles returns the files that a server reads. Some of them need not exist.
func ReadFiles(conf *hadoopconf.Conf) (files []string) {
	for _, name := range []string{"core-site.xml", "kms-site.xml", filepath.Base(ACLFile(conf)), "ssl-server.xml",
		"ssl-client.xml"} {
		files = append(files, filepath.Join(conf.Dir(), name))
	}
	for _, f := range secretFiles(conf) {
		files = append(files, f.Path)
	}
	for _, name := range []string{tlsCertificateProperty, "claviger.ssl.truststore",
		"hadoop.security.group.mapping.ldap.ssl.truststore", signerPrefix + "ssl.truststore.location",
		tokensPrefix + "ssl.truststore.location"} {
		if path, ok := conf.Path(name); ok {
			files = append(files, path)
		}
	}
	return files
}

// WrittenFiles returns the files that a server makes and writes to, by the property that names them. The server also
// makes other files in their folders, with longer names.
func WrittenFiles(conf *hadoopconf.Conf) map[string]string {
	files := map[string]string{}
	if place, err := location.Of(conf); err == nil && place.File != "" {
		files[hadoopconf.MetastoreURI] = place.File
	}
	for _, name := range []string{"claviger.audit.file", "claviger.audit.json.file", hadoopconf.MetastoreSeen} {
		if path, ok := conf.Path(name); ok {
			files[name] = path
		}
	}
	list, _ := provider.SplitURIs(conf.String(hadoopconf.ProviderURI)) // Faults reports the error
	if len(list) > 0 {
		scheme, _, _ := strings.Cut(strings.ToLower(list[0]), ":")
		path, err := provider.UnnestPath(list[0])
		if err == nil && (scheme == "jceks" || scheme == "localjceks") {
			files[hadoopconf.ProviderURI] = path
		}
	}
	return files
}
