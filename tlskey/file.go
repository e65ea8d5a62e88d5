package tlskey

import (
	"os"
	"strings"

	"claviger/pkcs11"
	"claviger/secret"
)

// maxURIs is the largest size of a file with URIs, in bytes.
const maxURIs = 64 << 10

// ReadURIs reads the URIs of private keys from a file that a server reads in place of a private key in PEM. They are
// separated by blanks or line ends. ok is false if the file begins with something else, such as a private key.
func ReadURIs(path string) (uris []string, ok bool, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, false, err
	}
	defer clear(data) // it may be a private key
	const start = "pkcs11:"
	if len(data) > maxURIs || len(data) < len(start) || !strings.EqualFold(string(data[:len(start)]), start) {
		return nil, false, nil
	}
	return strings.Fields(string(data)), true, nil
}

// SecretFiles returns the files of URIs that other users must not read. It skips URIs that cannot be read.
func SecretFiles(uris []string) (list []secret.File) {
	for _, uri := range uris {
		if c, _, _, err := pkcs11.ParseKeyURI(uri); err == nil {
			list = append(list, c.Files...)
		}
	}
	return list
}
